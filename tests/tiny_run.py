"""A random Llama with a vocabulary of 60 English words, and runs small enough to finish in seconds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backflip.core.records import Prompt
from backflip.cycle.folder import start_run
from backflip.cycle.plan import Measure, Model, Plan, Rate, Sampling, TaskPlan
from backflip.models.chat import open_chat
from backflip.models.load import load_model
from backflip.policies.ppo import PPO, Tools
from backflip.policies.state import PolicyState
from backflip.rewards.fit import Fit
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader

SPECIAL = ["<unk>", "<end>", "<user>", "<bot>"]
TEXT = """a and are as at bad be best big bird blue bread cake cat cold day dog for garden good great hot house i in is
it joy kind lake love my new night of old on one rain red sad sea snow sun tea the to tree we with you , . !"""
TEMPLATE = (
    "{% for m in messages %}<user> {{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
TOPICS = ["sun", "sea", "tea", "rain", "snow", "cat", "dog", "bread", "cake", "garden", "lake", "bird"]


def save_model(folder: Path, *, template: bool = True, context: int = 64, **changes: Any) -> Path:
    """A random model and its tokenizer as a Hugging Face folder. The pad token is the end-of-turn token."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *TEXT.split()])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        additional_special_tokens=["<user>", "<bot>"],
    )
    if template:
        tokenizer.chat_template = TEMPLATE
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
        **(sizes | changes),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests(split: str, count: int) -> list[Prompt]:
    """Up to 24 short requests of one split, in the model's vocabulary; their ids are not in alphabetical order."""
    opening = {"train": "one {} for my {}", "monitor": "is the {} as good as the {}", "final": "we love {} and {}"}
    pairs = [(a, b) for k in (1, 5) for a, b in zip(TOPICS, TOPICS[k:] + TOPICS[:k], strict=True)][:count]
    return [
        Prompt(id=f"{split}-{count - n:02d}", split=split, text=opening[split].format(a, b), topic=f"{a} {b}")  # type: ignore[arg-type]
        for n, (a, b) in enumerate(pairs)
    ]


def save_prompts(file: Path, prompts: list[Prompt]) -> Path:
    """Prompts as a file that `task.prompts` can name."""
    rows = [{"id": p.id, "split": p.split, "prompt": p.text, "topic": p.topic, "form": p.form} for p in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def plan_of(model: Path, prompts: Path, **changes: Any) -> Plan:
    """A plan of two rounds that takes about two seconds."""
    keys: dict[str, Any] = {
        "rounds": 2,
        "seed": 3,
        "model": Model(name=str(model), dtype="float32", device="cpu", threads=1),
        "task": TaskPlan(prompts=str(prompts)),
        "sampling": Sampling(answers=3, max_tokens=8, batch=9),
        "rate": Rate(pairs=20, held_out=6),
        "fit": Fit(prior=(10.0, 100.0), folds=2),
        "ppo": PPO(steps=2, prompts=4, answers=4, rank=4, alpha=8.0, learning_rate=5e-3, micro=6, kl_coef=0.1),
        "measure": Measure(monitor_prompts=4, monitor_answers=2, final_prompts=4, final_answers=2, best_of=4),
    }
    return Plan(**(keys | changes))


def all_prompts() -> list[Prompt]:
    """12 train, 6 monitor and 5 final requests."""
    return [p for split, n in (("train", 12), ("monitor", 6), ("final", 5)) for p in requests(split, n)]


def new_run(root: Path, model: Path, *, prompts: Path | None = None, **changes: Any) -> Path:
    """The folder of a run that has not begun; its prompts are written there unless they are given."""
    root.mkdir(parents=True, exist_ok=True)
    start_run(root, plan_of(model, prompts or save_prompts(root / "prompts.jsonl", all_prompts()), **changes))
    return root


class Bench:
    """Everything a climb needs on a tiny model, with a scorer of one's own."""

    def __init__(self, model: Path, scorer: Any, *, temperature: float = 1.0, micro: int = 32) -> None:
        self.loaded = load_model(str(model), dtype=torch.float32)
        self.chat = open_chat(self.loaded)
        self.state: PolicyState | None = None
        self.reader = Reader(self.loaded.trunk, self.chat, micro=micro, temperature=temperature)
        self.engine = Engine(lambda _: self.merged(), self.chat, batch=64, temperature=temperature)
        self.tools = Tools(self.engine, self.reader, scorer, requests("train", 8))

    def merged(self) -> Any:
        """The policy as it stands, ready to sample."""
        return self.loaded.trunk.merged(self.state.adapter if self.state is not None else None)
