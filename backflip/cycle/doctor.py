"""Is a plan sound, and what will it cost? Asked before computing is spent, with the plan's own model and sizes.

One batch of answers, one fit on made-up votes and one step of the climb are enough to tell; nothing is stored.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from backflip.cycle.artefacts import UNREADABLE, load_array
from backflip.cycle.folder import BASE
from backflip.cycle.forecast import Work, seconds_by_step
from backflip.cycle.plan import Plan
from backflip.cycle.tools import Silent, Watcher
from backflip.cycle.trial import (
    Patient,
    foresee_training,
    open_patient,
    pace_of,
    try_fit,
    try_sampling,
    try_step,
    work_ahead,
)
from backflip.cycle.untouched import first_version
from backflip.measure import soundness
from backflip.measure.soundness import Finding
from backflip.models.families import FAMILIES
from backflip.models.load import why_slow
from backflip.models.memory import available_bytes, peak_bytes, used_bytes
from backflip.models.trunk import Trunk
from backflip.rewards.model import load_reward

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the doctor found, and what the plan will cost on this machine."""

    findings: list[Finding]
    seconds: dict[str, float]
    """Seconds of the whole run by what they are spent on; people's time to vote is not among them."""
    memory_gb: float
    """Most memory that the run will hold at once."""
    available_gb: float
    work: Work | None
    """None when a fault kept the doctor from counting."""

    @property
    def sound(self) -> bool:
        """Whether no fault was found."""
        return all(f.level != "fault" for f in self.findings)


def examine(plan: Plan, *, root: Path | None = None, watcher: Watcher | None = None) -> Examination:
    """Check the model, prompts and sizes of `plan`, and of the run in `root` the rewards it has fitted.

    Raises: ConfigError or DataError for a plan, prompts or model that do not fit.
    """
    watcher = Silent() if watcher is None else watcher
    patient = open_patient(plan, root)
    watcher.begin("examine the plan", 4)
    tried = try_sampling(patient)
    watcher.advance(1, "answers drawn and read")
    chat, reader, answers, asked = patient.chat, patient.reader, tried.answers, tried.asked
    device, taught = reader.trunk.device, first_version(root, plan) == BASE
    findings = [*_forward(reader.trunk), soundness.stop_tokens(chat, answers, plan.sampling.max_tokens, taught=taught)]
    if not chat.stops:  # nothing that follows could be done
        return _cut_short(findings, used_bytes(device), available_bytes(device))
    findings += [
        soundness.template(chat, list({p.id: p for p in asked}.values()), answers),
        soundness.sampler_agrees(reader, asked, answers),
        soundness.padding(reader, asked, answers),
        soundness.kl_at_start(reader, patient.state, asked, answers),
    ]
    watcher.advance(1, "log-probabilities compared")
    reward = try_fit(patient, tried)
    findings += [soundness.reward_scale(reward, tried.features), *_scales(root)]
    watcher.advance(1, "a reward fitted")
    held, room, foreseen = used_bytes(device), available_bytes(device), foresee_training(patient, tried)
    least = foreseen if foreseen <= room else foresee_training(patient, tried, 1)
    memory = memory_finding(foreseen, room, plan.ppo.micro, least)
    if memory.level == "fault":
        return _cut_short([*findings, memory], held + foreseen, room)
    metrics = try_step(patient, tried, reward)
    if "val/ratio_first" in metrics:  # DPO and best-of-n have no ratio
        findings.append(soundness.first_ratio(metrics, reader.trunk.dtype))
    findings += [memory, *_votes_to_come(patient), *_answers_to_come(patient, taught)]
    watcher.advance(1, "one step climbed")
    work, pace = work_ahead(patient), pace_of(patient, tried)
    peak = max(peak_bytes(device), held + min(foreseen, room))  # the step that was tried may have been a small one
    return Examination(
        findings=findings,
        seconds=seconds_by_step(work, pace),
        memory_gb=_gb(peak),
        available_gb=_gb(room),
        work=work,
    )


def _cut_short(findings: list[Finding], memory: int, room: int) -> Examination:
    """The examination as far as it went."""
    return Examination(findings=findings, seconds={}, memory_gb=_gb(memory), available_gb=_gb(room), work=None)


def _forward(trunk: Trunk) -> list[Finding]:
    """A word about models that the fast forward does not compute; the times that are foretold are measured with it."""
    slow = why_slow(trunk)
    if slow is None:
        return []
    return [Finding(
        name="forward", level="warning",
        fact=f"The model, of family {trunk.config.model_type}, is computed by Hugging Face's forward.",
        cause=f"The fast forward {slow}. Figures stay right, but each answer reads its prompt anew: it takes longer.",
        cure=f"Nothing need be done. Fast are plain models of the families {', '.join(FAMILIES)}.",
    )]  # fmt: skip


def _votes_to_come(patient: Patient) -> list[Finding]:
    """A word about plans that learn from imports alone, where nothing is imported yet."""
    if patient.plan.rate.pairs or patient.imported.votes:
        return []
    return [Finding(
        name="votes", level="warning", fact="The plan asks for no votes, and nothing is imported yet.",
        cause="With rate.pairs = 0 a run learns from imported preferences alone; their time is not in the estimate.",
        cure="Bring them in with: backflip import FILE --dir RUN, then examine the run's folder.",
    )]  # fmt: skip


def _answers_to_come(patient: Patient, taught: bool) -> list[Finding]:
    """A word about a stage 0 for which people have yet to write what it learns from."""
    if not taught or patient.demonstrations is not None:
        return []
    return [Finding(
        name="stage 0", level="warning", fact="Stage 0 learns from what people write, and nothing is written yet.",
        cause=f"It waits for {patient.plan.sft.written} answers (sft.written); its time is not in the estimate.",
        cure="Nothing need be done: the run waits, and people write once its pages are served.",
    )]  # fmt: skip


def memory_finding(needed: int, room: int, micro: int, least: int) -> Finding:
    """Whether training fits: what it takes beside what is held now, what is free, and what one answer at a time takes.

    In bytes. A run that has not `needed` but `least` takes fewer answers at a time by itself.
    """
    figures = {"needed_gb": _gb(needed), "available_gb": _gb(room)}
    fact = f"Training will take {_gb(needed):.1f} GB more than the model holds; {_gb(room):.1f} GB are free."
    if needed <= room:
        return Finding(name="memory", level="ok", fact=fact, figures=figures)
    cause = f"A micro-batch of {micro} answers keeps its activations until the backward"
    if least <= room:
        return Finding(
            name="memory", level="warning", fact=fact, figures=figures,
            cause=f"{cause}; a run takes fewer at a time then, with the same results.",
            cure="Nothing needs to be done; free memory, or a lower ppo.micro (sft.micro in stage 0), silences this.",
        )  # fmt: skip
    return Finding(
        name="memory", level="fault", fact=fact, figures=figures,
        cause=f"{cause}, and a single one would take {_gb(least):.1f} GB.",
        cure="Close other programs, take a smaller model or sampling.max_tokens, or compute elsewhere (model.device).",
    )  # fmt: skip


def _scales(root: Path | None) -> list[Finding]:
    """The scale of every reward that the run in `root` has fitted, on the answers of its first round."""
    out: list[Finding] = []
    reference = root / "rounds" / "r1" / "features-rate.safetensors" if root is not None else None
    if root is None or reference is None or not reference.exists():
        return out
    with suppress(*UNREADABLE):  # what is damaged is computed anew by the step that needs it
        features = load_array(reference, "features")
        for folder in sorted((root / "rounds").glob("r*/reward"), key=lambda f: int(f.parent.name[1:])):
            found = soundness.reward_scale(load_reward(folder), features)
            out.append(replace(found, name=f"reward scale, {folder.parent.name}"))
    return out


def _gb(count: int) -> float:
    return count / GB
