"""TRL's side of a comparison: runs in a virtual environment of its own, without Backflip. See `serve`.

TRL's settings are its defaults, except where both sides must do the same work or where another value is faster here:
no early ending, no gradient checkpointing (which computes the forward twice), precision as asked for: "fp32", "bf16"
(weights and optimiser in bfloat16) or "autocast" (float32 weights, TRL's default). With "lora" PPO's policy carries
an adapter of that rank on the layers named, and the reference is the same model without it; its value model stays
whole, as TRL has it. With "layers_only" the embeddings, which are the output layer too, stay as they are, as they
do in Backflip: then both sides do the same work.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from serve import Phases, Turn, serve
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

PAD = "<|endoftext|>"
"""In SmolLM2 another token than the one that ends an answer."""


def training(settings: dict[str, Any]) -> dict[str, Any]:
    """What every trainer is told."""
    return {
        "output_dir": settings["folder"],
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": settings["precision"] == "autocast",
        "gradient_checkpointing": settings.get("checkpointing", False),
        "per_device_train_batch_size": settings["micro"],
        "lr_scheduler_type": "constant",  # turns are alike, and PPO's schedule would be over after one
    }


def tokenizer(settings: dict[str, Any]) -> Any:
    """The model's tokenizer, padding on the left."""
    found = AutoTokenizer.from_pretrained(settings["model"])
    found.pad_token, found.padding_side = PAD, "left"
    return found


def model(settings: dict[str, Any], pad: int, scores: bool = False) -> Any:
    """A full copy: a language model, or one that gives a single score."""
    kind, more = (AutoModelForSequenceClassification, {"num_labels": 1}) if scores else (AutoModelForCausalLM, {})
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    found = kind.from_pretrained(settings["model"], dtype=dtype, **more)
    found.config.pad_token_id = pad
    if not scores:
        found.generation_config.pad_token_id = pad
    return found


def ppo_trainer(settings: dict[str, Any], phases: Phases, **more: Any) -> tuple[Any, dict[str, int]]:
    """PPOTrainer with policy, reference, reward and value model; and the tokens sampled and steps taken so far."""
    import trl.experimental.ppo.ppo_trainer as code
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.manual_seed(settings.get("seed", 0))
    words = tokenizer(settings)
    pad = int(words.pad_token_id)
    episodes = settings["episodes"]
    config = PPOConfig(
        **training(settings) | {"learning_rate": settings["learning_rate"], "seed": settings.get("seed", 0)},
        gradient_accumulation_steps=episodes // settings["micro"],
        total_episodes=episodes * settings.get("updates", 1),
        num_ppo_epochs=settings["epochs"],
        response_length=settings["new"],
        stop_token=settings.get("stop"),
        temperature=1.0,
        num_sample_generations=0,
    )
    adapter = None
    if settings.get("lora"):
        from peft import LoraConfig

        wish = settings["lora"]
        adapter = LoraConfig(
            r=wish["rank"], lora_alpha=wish["alpha"], target_modules=wish["modules"], task_type="CAUSAL_LM"
        )
    # twice the prompts: Accelerate steps at every part of a batch that is the last one of its data
    data = Dataset.from_dict({"input_ids": settings["prompts"] * 2})
    policy, value = model(settings, pad), model(settings, pad, scores=True)
    if settings.get("layers_only"):
        for whole in (policy, value):
            whole.get_input_embeddings().requires_grad_(False)
    judge = more.pop("reward_model", None) or model(settings, pad, scores=True)
    trainer = PPOTrainer(
        args=config, processing_class=words, model=policy, train_dataset=data, peft_config=adapter,
        ref_model=None if adapter else model(settings, pad), reward_model=judge,
        value_model=value, **more,
    )  # fmt: skip
    seen = {"tokens": 0, "steps": 0}
    generate = code.batch_generation

    def counted(policy: Any, queries: Any, *args: Any) -> Any:
        out = generate(policy, queries, *args)
        seen["tokens"] += out[0].numel() - queries.numel()
        return out

    def step_taken(*_: Any) -> None:
        seen["steps"] += 1

    code.batch_generation = phases.timed("sample", counted)
    code.get_reward = phases.timed("read", code.get_reward)
    code.forward = phases.timed("read", code.forward, when=lambda: not torch.is_grad_enabled())
    trainer.optimizer.optimizer.register_step_post_hook(step_taken)
    return trainer, seen


def ppo(settings: dict[str, Any], phases: Phases) -> Turn:
    """One update: `episodes` answers, `epochs` passes over them with one gradient step each."""
    trainer, seen = ppo_trainer(settings, phases)

    def turn() -> dict[str, Any]:
        seen.update(tokens=0, steps=0)
        trainer.train()
        if seen["steps"] != settings["epochs"]:
            raise RuntimeError(f"{seen['steps']} gradient steps instead of {settings['epochs']}")
        return {"tokens": seen["tokens"]}

    return turn


def grpo(settings: dict[str, Any], phases: Phases) -> Turn:
    """One update of GRPO: `episodes` answers, `group` to each prompt, one gradient step."""
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    words = tokenizer(settings)
    parts = settings["episodes"] // settings["micro"]
    config = GRPOConfig(
        **training(settings),
        gradient_accumulation_steps=parts,
        num_generations=settings["group"],
        max_completion_length=settings["new"],
        generation_kwargs={"min_new_tokens": settings["new"]},
        beta=settings["beta"],
        max_steps=1,
    )
    prompts = settings["prompts"][: settings["episodes"] // settings["group"]]
    data = Dataset.from_dict({"prompt": words.batch_decode(prompts)})

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [len(set(c)) / 30.0 for c in completions]

    trainer = GRPOTrainer(
        model=model(settings, int(words.pad_token_id)), reward_funcs=reward, args=config, train_dataset=data,
        processing_class=words,
    )  # fmt: skip
    seen = {"tokens": 0}
    generate = trainer._generate

    def counted(asked: list[Any]) -> Any:
        out = generate(asked)
        if {len(ids) for ids in out[0]} != {len(prompts[0])}:
            raise RuntimeError("the prompts have other tokens as text")
        seen["tokens"] += sum(len(ids) for ids in out[1])
        return out

    trainer._generate = phases.timed("sample", counted)
    trainer._get_per_token_logps_and_entropies = phases.timed(
        "read", trainer._get_per_token_logps_and_entropies, when=lambda: not torch.is_grad_enabled()
    )

    def turn() -> dict[str, Any]:
        seen["tokens"] = 0
        trainer.train()
        return {"tokens": seen["tokens"]}

    return turn


def one_pass(trainer: Any) -> Turn:
    """One pass over a trainer's pairs; counts the tokens of its batches."""
    seen = {"tokens": 0}
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        batch = collate(examples)
        seen["tokens"] += int(batch["attention_mask"].sum())
        return batch

    trainer.data_collator = counted

    def turn() -> dict[str, Any]:
        seen["tokens"] = 0
        trainer.train()
        return {"tokens": seen["tokens"]}

    return turn


def reward(settings: dict[str, Any], _: Phases) -> Turn:
    """One pass of RewardTrainer over the pairs."""
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    words = tokenizer(settings)
    whole = {side: [p + a for p, a in zip(settings["prompts"], settings[side], strict=True)] for side in SIDES}
    data = Dataset.from_dict({f"{side}_ids": ids for side, ids in whole.items()})
    config = RewardConfig(**training(settings), num_train_epochs=1)
    judge = model(settings, int(words.pad_token_id), scores=True)
    return one_pass(RewardTrainer(model=judge, args=config, train_dataset=data, processing_class=words))


def dpo(settings: dict[str, Any], _: Phases) -> Turn:
    """One pass of DPOTrainer over the pairs."""
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(0)
    words = tokenizer(settings)
    columns = {"prompt": "prompts"} | {side: side for side in SIDES}
    data = Dataset.from_dict({column: words.batch_decode(settings[key]) for column, key in columns.items()})
    config = DPOConfig(**training(settings), num_train_epochs=1)
    policy = model(settings, int(words.pad_token_id))
    return one_pass(DPOTrainer(model=policy, args=config, train_dataset=data, processing_class=words))


SIDES = ("chosen", "rejected")


def make_room(settings: dict[str, Any]) -> None:
    """Set the threads and make the trainer's folder."""
    torch.set_num_threads(settings["threads"])
    Path(settings["folder"]).mkdir(parents=True, exist_ok=True)


def prepare(settings: dict[str, Any], phases: Phases) -> Turn:
    """The trainer that `settings` ask for, ready for its first turn."""
    make_room(settings)
    work: dict[str, Callable[[dict[str, Any], Phases], Turn]] = {"ppo": ppo, "grpo": grpo, "reward": reward, "dpo": dpo}
    return work[settings["work"]](settings, phases)


if __name__ == "__main__":
    serve(prepare)
