"""The losses of RLOO, GRPO and DPO are those of TRL: its trainers draw, score and compute, and we on their tensors."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import save_model
from torch import Tensor

from backflip.objectives.dpo import dpo_loss
from backflip.objectives.group import above_mean, leave_one_out, normalised
from backflip.objectives.kl import k1, k3
from backflip.objectives.ppo import policy_loss

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the warnings are TRL's own
CLOSE = 1e-5
CAP, CLIP = 6, 0.2
PROMPTS = ["one sun for my sea", "one cat"]
GROUP = torch.arange(2).repeat_interleave(4)


def words(completions: list[str], **_: Any) -> list[float]:
    """What the trainers pay: a figure that differs from answer to answer."""
    return [len(set(c.split())) - 0.3 * c.count("e") for c in completions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("trl") / "model")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def built(kind: str, folder: Path, **keys: Any) -> Any:
    """One of TRL's trainers on the tiny model, on the CPU, with nothing reported anywhere."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows: list[dict[str, str]] = [{"prompt": p} for p in PROMPTS]
    if kind == "DPO":
        rows = [
            {"prompt": "one sun", "chosen": " for my sea .", "rejected": " of snow"},
            {"prompt": "we love tea", "chosen": " !", "rejected": " and good bread , too ."},
        ]
    else:
        keys |= {"max_completion_length": CAP, "num_generations": 4, "epsilon": CLIP}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder.parent / "out"), per_device_train_batch_size=8, report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, **keys
    )  # fmt: skip
    more = {} if kind == "DPO" else {"reward_funcs": words}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(folder), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder), **more
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def drawn(trainer: Any) -> dict[str, Any]:
    """Eight scored answers, four to a prompt; the answers' padding holds what must not count."""
    batch: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(4)])
    assert not batch["completion_mask"].all()
    return batch


def moved(model: Any, size: float = 0.02) -> None:
    """Take the policy away from where it sampled, so that ratios leave 1 and the clip holds some."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=draw))


def logp_of(model: Any, batch: dict[str, Any]) -> Tensor:
    """(B, T) log-probabilities by a plain forward and log_softmax."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=seen).logits[:, -width - 1 : -1]
    return torch.gather(logits.float().log_softmax(2), 2, batch["completion_ids"][..., None])[..., 0]


def paid(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """(8,) what TRL's reward function said."""
    tokenizer = trainer.processing_class
    ids = [row[mask.bool()] for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)]
    return torch.tensor(words(tokenizer.batch_decode(ids, skip_special_tokens=True)))


def same(trainer: Any, theirs: Tensor, ours: Tensor) -> None:
    """Loss and gradient agree."""
    assert float(theirs) == pytest.approx(float(ours), abs=CLOSE)
    assert abs(float(ours)) > 1e-3
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    a, b = (torch.autograd.grad(x, weights, retain_graph=True) for x in (theirs, ours))
    largest = max(float(x.abs().max()) for x in b)
    assert largest > 1e-3
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) < CLOSE * max(1.0, largest)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_grpo_with_and_without_k3_is_trls(folder: Path, kind: str, beta: float) -> None:
    scale = "group" if kind == "grpo" else "none"
    keys = {"loss_type": kind, "scale_rewards": scale, "use_bias_correction_kl": False}  # k3 as GRPO's paper has it
    trainer = built("GRPO", folder, beta=beta, **keys)
    batch = drawn(trainer)
    adv = (normalised if kind == "grpo" else above_mean)(paid(trainer, batch), GROUP)
    assert float((batch["advantages"] - adv).abs().max()) < CLOSE

    old = logp_of(trainer.model, batch).detach()
    moved(trainer.model)
    theirs = trainer.compute_loss(trainer.model, batch | {"old_per_token_logps": old})

    logp, mask = logp_of(trainer.model, batch), batch["completion_mask"].bool()
    weight = (1 / mask.sum(1, keepdim=True) if kind == "grpo" else torch.ones(8, 1)).expand(mask.shape)
    total = 8 if kind == "grpo" else 8 * CAP
    out = policy_loss(logp, old, adv[:, None].expand(mask.shape), mask, CLIP, weight=weight, tokens=total)
    nats = k3(logp, old).masked_fill(~mask, 0.0)  # the reference is where the policy began
    assert out.clipfrac > 0
    same(trainer, theirs, out.loss + beta * (weight * nats).sum() / total)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo_with_and_without_k1_in_the_reward_is_trls(folder: Path, beta: float) -> None:
    trainer = built("RLOO", folder, beta=beta)
    if beta:
        moved(trainer.model, 0.01)  # away from the reference before it samples
    batch = drawn(trainer)
    mask = batch["completion_mask"].bool()
    old = logp_of(trainer.model, batch).detach().masked_fill(~mask, 0.0)
    reward = paid(trainer, batch)
    if beta:
        with torch.no_grad():
            ref = logp_of(trainer.ref_model, batch).masked_fill(~mask, 0.0)
        assert float(k1(old, ref).abs().max()) > 0.01
        reward = reward - beta * k1(old, ref).sum(1)
    adv = leave_one_out(reward, GROUP)
    assert float((batch["advantages"] - adv).abs().max()) < CLOSE
    assert float((batch["old_logps"] - old.sum(1)).abs().max()) < CLOSE

    moved(trainer.model)
    theirs = trainer.compute_loss(trainer.model, batch)
    whole = logp_of(trainer.model, batch).masked_fill(~mask, 0.0).sum(1, keepdim=True)
    ones = torch.ones(8, 1, dtype=torch.bool)
    same(trainer, theirs, policy_loss(whole, old.sum(1, keepdim=True), adv[:, None], ones, CLIP, tokens=8).loss)


def test_dpo_is_trls(folder: Path) -> None:
    trainer = built("DPO", folder, beta=0.4)
    batch = next(iter(trainer.get_train_dataloader()))
    moved(trainer.model)
    theirs = trainer.compute_loss(trainer.model, batch)

    def ratio(model: Any) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        logp = torch.gather(logits.float().log_softmax(2), 2, batch["input_ids"][:, 1:, None])[..., 0]
        return (logp * batch["completion_mask"][:, 1:]).sum(1)

    with torch.no_grad():
        ref = ratio(trainer.ref_model)
    won, lost = (ratio(trainer.model) - ref).chunk(2)
    same(trainer, theirs, dpo_loss(won, lost, torch.ones(2), 0.4).loss)
