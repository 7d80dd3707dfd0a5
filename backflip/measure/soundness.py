"""Does the machinery compute what it should? Checks on a model and its reader, before computing is spent on a run.

Each check states what it found, and for a fault the likely cause and the cure. The faults are those that make PPO
fail in silence: a sampler that is not the policy, padding that leaks, a ratio that does not begin at 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Prompt
from backflip.models.chat import Chat
from backflip.policies.state import PolicyState
from backflip.rewards.fit import Reward
from backflip.sampling.score import Reader, Reading, sampled_logp

Array = NDArray[np.float64]

EXACT_NATS = 1e-3
"""Largest difference of two float32 log-probabilities of one token that are computed in another order."""
ROUGH_NATS = 0.1
"""The same for bfloat16, as a mean over tokens: rounding alone gives SmolLM2-135M 0.01 to 0.05."""
RATIO_BOUNDS = (0.8, 1.2)
"""Probability ratios outside these are clipped by PPO; they should be rare before anything was learned."""
OUTSIDE_SHARE = 0.05
SELDOM = 0.05
"""Fewer answers than this share that end by themselves are worth a warning."""
ALONE = 8
"""Answers that are read once more, each alone, to see whether padding leaks."""
SPREAD = 0.02
"""How far a reward's mean may be from 0 and its standard deviation from 1 on the untouched model's answers."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found. A fault makes a run worthless or impossible; a warning is worth knowing."""

    name: str
    level: Literal["ok", "warning", "fault"]
    fact: str
    cause: str = ""
    cure: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def stop_tokens(chat: Chat, answers: Sequence[Answer], max_tokens: int, *, taught: bool = False) -> Finding:
    """Whether the tokens that end an answer are known, are the template's own, and are drawn at all.

    `taught`: the model will still learn from demonstrations, so that it need not end its answers yet.
    """
    share = float(np.mean([a.ended for a in answers]))
    figures = {"stops": float(len(chat.stops)), "ended_share": share}
    if not chat.stops:
        return Finding(
            name="stop tokens", level="fault", figures=figures, fact="The model names no token that ends an answer.",
            cause="Its tokenizer has no eos_token, and its generation config no eos_token_id.",
            cure="Set eos_token in tokenizer_config.json to the token its chat template ends a turn with.",
        )  # fmt: skip
    closing = chat.closing()
    if closing and not set(closing) & set(chat.stops):
        ends, known = chat.tokenizer.decode(closing), chat.tokenizer.decode(list(chat.stops))
        return Finding(
            name="stop tokens", level="fault", figures=figures,
            fact=f"The chat template ends an answer with {ends!r}, and only {known!r} stops one.",
            cause="The tokenizer's eos_token is that of the base model, not of the chat template.",
            cure="Add the template's token to eos_token_id in generation_config.json.",
        )  # fmt: skip
    fact = f"{share:.0%} of {len(answers)} answers end by themselves within {max_tokens} tokens."
    if share >= SELDOM:
        return Finding(name="stop tokens", level="ok", fact=fact, figures=figures)
    return Finding(
        name="stop tokens", figures=figures, fact=fact,
        level="warning" if share or taught or not chat.templated else "fault",
        cause="The limit may be too short for this model, or it was never taught to end its turn.",
        cure="Raise sampling.max_tokens; let a base model learn from demonstrations first (sft.demonstrations).",
    )  # fmt: skip


def template(chat: Chat, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Finding:
    """Whether requests and answers survive the chat template and the tokenizer, in both directions."""
    faults: list[tuple[str, str, str]] = []
    lost = [p.id for p in prompts if not _holds(chat, chat.encode(p), p.text)]
    if lost:
        faults.append((
            f"{len(lost)} of {len(prompts)} requests do not reach the model whole, {lost[0]} among them.",
            "The chat template drops or changes a part of the request.",
            "Correct the template (chat_template.jinja), or choose another model.",
        ))  # fmt: skip
    texts = [a.text for a in answers if a.text]
    changed = [t for t in texts if chat.decode(chat.encode_answer(t)) != _plain(chat, t)]
    if changed:
        faults.append((
            f"{len(changed)} of {len(texts)} answers change when tokenised for training, {changed[0]!r} first.",
            "A stop token stands inside an answer, or the chat template writes something before it.",
            "Compare the template's generation prompt with what it puts before an assistant's turn.",
        ))  # fmt: skip
    start = chat.tokenizer.bos_token_id
    twice = [p.id for p in prompts if start is not None and chat.encode(p)[:2] == [start, start]]
    if twice:
        faults.append((
            f"{len(twice)} of {len(prompts)} requests begin with two start tokens.",
            "The chat template writes one, and the tokenizer adds another.",
            "Remove bos_token from the template, or set add_bos_token to false in tokenizer_config.json.",
        ))  # fmt: skip
    counts = {"requests_lost": lost, "answers_changed": changed, "starts_twice": twice}
    figures = {name: float(len(found)) for name, found in counts.items()}
    if faults:
        fact, cause, cure = faults[0]
        return Finding(name="template", level="fault", fact=fact, cause=cause, cure=cure, figures=figures)
    if chat.templated and not chat.continues:
        return Finding(
            name="template", level="warning", figures=figures,
            fact="The chat template shows an answer in another frame than the one it is asked for in.",
            cause="Its generation prompt holds words that it leaves out of finished turns, such as an empty thought.",
            cure="Nothing, for answers the model gives itself; demonstrations and imports are read as plain text.",
        )  # fmt: skip
    how = "the chat template" if chat.templated else "plain text, as the model has no chat template"
    fact = f"{len(prompts)} requests and {len(texts)} answers survive {how} unchanged."
    return Finding(name="template", level="ok", fact=fact, figures=figures)


def _holds(chat: Chat, ids: Sequence[int], text: str) -> bool:
    return _words(_plain(chat, text)) in _words(str(chat.tokenizer.decode(list(ids), skip_special_tokens=False)))


def _plain(chat: Chat, text: str) -> str:
    """The text as this tokenizer can say it: one that does not know a word loses it in any frame."""
    return chat.decode(chat.tokenizer(text, add_special_tokens=False)["input_ids"])


def _words(text: str) -> str:
    return " ".join(text.split())


def sampler_agrees(reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Finding:
    """Whether the log-probabilities that were recorded while sampling are those that the trainer computes."""
    reading = reader.reference(prompts, answers)
    gap = (reading.logp - sampled_logp(answers, reading))[reading.mask]
    figures = _gap_figures(gap)
    fact = (
        f"Sampler and trainer differ by {figures['mean_nats']:.4f} nats a token, {figures['max_nats']:.2g} at most; "
        f"{figures['outside_share']:.1%} of the tokens lie outside ratio {RATIO_BOUNDS[0]} to {RATIO_BOUNDS[1]}."
    )
    ok = _small(reader, figures) and figures["outside_share"] <= OUTSIDE_SHARE
    return Finding(
        name="sampler and trainer", level="ok" if ok else "fault", fact=fact, figures=figures,
        cause="" if ok else "The sampler holds other weights, another temperature or another number format.",
        cure="" if ok else 'Try model.dtype = "float32"; if that agrees, this model cannot be tuned in bfloat16.',
    )  # fmt: skip


def padding(reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Finding:
    """Whether an answer is read the same alone and beside longer ones."""
    together = reader.reference(prompts, answers)
    by_length = np.argsort([len(a.tokens) for a in answers])
    rows = sorted({int(by_length[i]) for i in np.linspace(0, len(answers) - 1, ALONE).astype(int)})
    parts = []
    for row in rows:
        alone = reader.read([prompts[row]], [answers[row]])
        parts.append((together.logp[row, : alone.logp.shape[1]] - alone.logp[0])[alone.mask[0]])
    figures = _gap_figures(torch.cat(parts))
    ok = _small(reader, figures)
    return Finding(
        name="padding", level="ok" if ok else "fault", figures=figures,
        fact=f"An answer read alone and beside others differs by {figures['mean_nats']:.4f} nats a token.",
        cause="" if ok else "The model lets padding, or other answers of a batch, change what it computes.",
        cure="" if ok else "Its log-probabilities cannot be trusted in batches: choose a model of another family.",
    )  # fmt: skip


def kl_at_start(reader: Reader, state: PolicyState, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Finding:
    """Whether a policy that has learned nothing yet is the untouched model."""
    reference: Reading = reader.reference(prompts, answers)
    policy = reader.read(prompts, answers, state.adapter)
    gap = ((policy.logp - reference.logp) * reference.mask).sum(1)
    kl, largest = float(gap.mean()), float(gap.abs().max())
    ok = largest <= EXACT_NATS
    return Finding(
        name="kl at the start", level="ok" if ok else "fault", figures={"kl_nats": kl, "max_nats": largest},
        fact=f"Before the first step the policy is {kl:.2g} nats an answer from the untouched model.",
        cause="" if ok else "The adapter changes something although nothing was learned, or dropout is on.",
        cure="" if ok else "Start the run from an adapter of its own, and tell the maintainers which model this is.",
    )  # fmt: skip


def first_ratio(metrics: Mapping[str, float], dtype: torch.dtype) -> Finding:
    """Whether the first minibatch of a fresh policy finds every probability ratio at 1, from a step's metrics."""
    ratio = metrics["val/ratio_first"]
    spread = math.sqrt(2 * max(0.0, metrics["val/approxkl_first"]))  # of log ratios: those around 1 must not cancel
    near = abs(ratio - 1) <= (EXACT_NATS if dtype == torch.float32 else ROUGH_NATS / 10)
    ok = near and spread <= (EXACT_NATS if dtype == torch.float32 else ROUGH_NATS)
    return Finding(
        name="first ratio", level="ok" if ok else "fault", figures={"ratio": ratio, "spread_nats": spread},
        fact=f"The first minibatch's mean probability ratio is {ratio:.5f}, its spread {spread:.2g} nats.",
        cause="" if ok else "Training computes other log-probabilities than reading: dropout, or another batch shape.",
        cure="" if ok else 'Try model.dtype = "float32"; if it stays, tell the maintainers which model this is.',
    )  # fmt: skip


def require_sound_start(metrics: Mapping[str, float], dtype: torch.dtype) -> None:
    """Refuse to go on after a run's first step when it did not begin at the untouched model, or not at ratio 1.

    Raises: BackflipError.
    """
    faults = []
    if abs(metrics["objective/kl"]) > (EXACT_NATS if dtype == torch.float32 else ROUGH_NATS):
        faults.append(f"its answers were already {metrics['objective/kl']:.2g} nats from the untouched model's")
    if "val/ratio_first" in metrics and first_ratio(metrics, dtype).level == "fault":
        ratio, kl = metrics["val/ratio_first"], metrics["val/approxkl_first"]
        faults.append(f"the first minibatch's probability ratios were not 1 (mean {ratio:.4f}, KL {kl:.2g} nats)")
    if faults:
        raise BackflipError(
            f"The first step of the climb is not sound: {' and '.join(faults)}.\n"
            "Training computes other log-probabilities than reading does: dropout, or a fault of this model's code.\n"
            "See which check fails with: backflip doctor. Nothing that was voted is lost."
        )


def reward_scale(reward: Reward, reference: Array) -> Finding:
    """Whether a reward has mean 0 and standard deviation 1 on the untouched model's answers; features (R, F)."""
    score = reward.score(reference)
    mean, std = float(np.mean(score)), float(np.std(score))
    figures = {"mean": mean, "std": std}
    fact = f"The reward has mean {mean:.3f} and standard deviation {std:.3f} on the untouched model's answers."
    if np.isfinite(score).all() and abs(mean) <= SPREAD and abs(std - 1) <= SPREAD:
        return Finding(name="reward scale", level="ok", fact=fact, figures=figures)
    flat = not std or not np.isfinite(std)
    return Finding(
        name="reward scale", level="fault", fact=fact, figures=figures,
        cause="The untouched model's answers are all alike to it." if flat
        else "It was not normalised after its fit: KL coefficient and critic would mean something else each round.",
        cure="Sample at a higher temperature, or ask for more varied prompts." if flat
        else "Fit the reward again; a reward from elsewhere has to be scaled to mean 0 and standard deviation 1.",
    )  # fmt: skip


def _gap_figures(gap: Tensor) -> dict[str, float]:
    low, high = RATIO_BOUNDS
    ratio = gap.exp()
    return {
        "mean_nats": float(gap.abs().mean()),
        "max_nats": float(gap.abs().max()),
        "outside_share": float(((ratio < low) | (ratio > high)).float().mean()),
    }


def _small(reader: Reader, figures: Mapping[str, float]) -> bool:
    if reader.trunk.dtype == torch.float32:
        return figures["max_nats"] <= EXACT_NATS
    return figures["mean_nats"] <= ROUGH_NATS
