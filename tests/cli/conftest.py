"""A tiny random Llama as a Hugging Face folder, and a plan that runs on it in seconds."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backflip.cli.main import main
from backflip.cycle.plan import Measure, Model, Plan, Rate, Sampling, TaskPlan, plan_toml
from backflip.policies.ppo import PPO
from backflip.rewards.fit import Fit

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
REQUESTS = [f"Say something kind about {thing}." for thing in ("tea", "rain", "bread", "a walk", "a friend", "music")]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (2 layers, hidden 32) with a byte tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(REQUESTS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_plan(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """One round: 12 pairs, one PPO step of 8 answers, 4 prompts a split."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": f"{text} ({split} {i})", "split": split, "topic": "kind friend"}
        for split in ("train", "monitor", "final")
        for i, text in enumerate(REQUESTS[:4])
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Plan(
        rounds=1,
        model=Model(name=str(tiny_model), device="cpu", dtype="float32"),
        task=TaskPlan(prompts=str(prompts)),
        sampling=Sampling(answers=4, max_tokens=6, batch=16),
        rate=Rate(pairs=12, held_out=4, double_share=0.25),
        fit=Fit(prior=(100.0,), folds=2),
        ppo=PPO(steps=1, prompts=2, answers=4, rank=2, critic_epochs=1, micro=8),
        measure=Measure(monitor_prompts=4, monitor_answers=2, final_prompts=4, final_answers=2),
    )


@pytest.fixture(scope="session")
def plan_file(tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the tiny plan, with changes, as a file `tiny.toml` in a fresh folder."""

    def write(**changes: object) -> Path:
        path = tmp_path_factory.mktemp("plan") / "tiny.toml"
        path.write_text(plan_toml(replace(tiny_plan, **changes)))
        return path

    return write


@dataclass(frozen=True)
class Said:
    """What a command did: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


def call(*args: object, cwd: Path, stdin: str = "") -> Said:
    """Run `backflip ARGS` in `cwd`, inside this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["backflip", *map(str, args)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main()
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def backflip(tmp_path: Path) -> Call:
    """Runs a command in an empty folder."""
    return partial(call, cwd=tmp_path)


@dataclass(frozen=True)
class Finished:
    """A run carried to its end by `backflip run`: what that said, and the folder it was called in."""

    said: Said
    cwd: Path
    root: Path
    base: Path
    """The model it began with."""

    def call(self, *args: object, stdin: str = "") -> Said:
        """Run another command where the run was made."""
        return call(*args, cwd=self.cwd, stdin=stdin)


@pytest.fixture(scope="session")
def finished(plan_file: Callable[..., Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny plan, carried to its end once for all tests that only look at it."""
    cwd = tmp_path_factory.mktemp("finished")
    said = call("run", plan_file(), cwd=cwd)
    assert said.code == 0, said.err
    [root] = (cwd / "runs").iterdir()
    return Finished(said, cwd, root, tiny_model)
