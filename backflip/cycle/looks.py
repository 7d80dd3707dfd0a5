"""Looks that people judge while the climb goes on: published, filled as votes come, and frozen in their order.

A look belongs to the step at which its pairs were made, however late they are judged. It is frozen once each of its
pairs has a vote, or once `alarm.patience` looks were taken after it; a vote that comes later is not counted. Looks are
frozen, and weighed, in the order of their steps: one that is full waits for those before it.

Why the alarm stays valid at every look: `stats.falling` needs that, given all that was weighed before, the judgements
it adds are draws from the chance of a win at that look's policy. When a look is frozen is decided by how many of its
votes are there and how many steps were taken, never by what they say; which pairs are unjudged by then must not depend
on which answer is the better one, as it does not for people who do not know whose is whose. A frozen look never
changes, not even where the process is killed: the evidence is a function of a growing list, as if no vote were late.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from backflip.core.records import Answer, Pair, Prompt, Sample, Vote
from backflip.core.rng import seed_of
from backflip.cycle.artefacts import readable, samples_of, save_answers, write_text
from backflip.cycle.folder import LOOKS
from backflip.cycle.tools import Tools
from backflip.measure.alarm import win
from backflip.stats.calibration import OUTCOME


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One of the policy's answers against the untouched model's to the same prompt."""

    pair: str
    """Its id; empty where both say the same, which is a tie that nobody need judge."""
    policy_is_a: bool
    foretold: float
    """Chance, a tie half, that the policy's wins, by the reward."""
    gain: float
    """Reward of the policy's answer, less that of the other."""
    prompt: str
    ours: str
    theirs: str


@dataclass(frozen=True, kw_only=True)
class OpenLook:
    """A look whose pairs were published."""

    tick: int
    """Step of the round."""
    kl: float
    duels: tuple[Duel, ...]


class Counted(NamedTuple):
    """What has been judged of a look."""

    duels: list[Duel]
    wins: list[float]
    """One for each of `duels`: 1, 1/2 or 0."""
    full: bool
    """Whether each pair has a vote, be it a skip."""


def look_file(root: Path, number: int, tick: int) -> Path:
    """Where a published look of round `number` lies."""
    return root / "rounds" / f"r{number}" / "looks" / f"step-{tick:05d}.json"


class Sides(NamedTuple):
    """What is compared, one entry a prompt."""

    prompts: Sequence[Prompt]
    ours: Sequence[Answer]
    theirs: Sequence[Answer]
    foretold: Sequence[float]
    gain: Sequence[float]


def publish(number: int, tools: Tools, tick: int, kl: float, sides: Sides) -> OpenLook:
    """Open a look's pairs: its answers and file first, then their rows. Doing it again changes nothing."""
    file = look_file(tools.root, number, tick)
    version = f"{LOOKS}{tick}"
    path = file.with_suffix(".safetensors")
    save_answers(path, [*sides.ours, *sides.theirs])
    artefact = str(path.relative_to(tools.root))
    samples = samples_of([*sides.ours, *sides.theirs], round=number, purpose="monitor", artefact=artefact)
    count = len(sides.prompts)
    samples = [
        Sample(**{**vars(s), "id": f"r{number}/{version}/{side}/{s.prompt_id}", "policy": f"{version}/{side}"})
        for s, side in zip(samples, ["policy"] * count + ["reference"] * count, strict=True)
    ]
    pairs, duels = [], []
    for i, prompt in enumerate(sides.prompts):
        pair_id, ours, theirs = f"r{number}/{version}/{prompt.id}", samples[i], samples[count + i]
        same = ours.text.strip() == theirs.text.strip()
        first = seed_of(tools.plan.seed, "side", pair_id) % 2 == 0
        a, b = (ours, theirs) if first else (theirs, ours)
        duels.append(
            Duel(pair="" if same else pair_id, policy_is_a=first, foretold=float(sides.foretold[i]),
                 gain=float(sides.gain[i]), prompt=prompt.text, ours=ours.text, theirs=theirs.text)
        )  # fmt: skip
        if not same:
            pairs.append(
                Pair(id=pair_id, round=number, stream="reference", prompt_id=prompt.id, sample_a=a.id, sample_b=b.id,
                     policy=ours.policy)
            )  # fmt: skip
    look = OpenLook(tick=tick, kl=kl, duels=tuple(duels))
    write_text(file, json.dumps(asdict(look), ensure_ascii=False))
    with tools.store.begin() as tx:
        tx.add_samples(samples)
        tx.add_pairs(pairs)
    return look


def published(root: Path, number: int, taken: int) -> list[OpenLook]:
    """The looks published in the round's first `taken` steps, in order. Raises: DataError for a damaged file."""
    found = []
    for file in sorted(look_file(root, number, 0).parent.glob("step-*.json")):
        if int(file.stem.removeprefix("step-")) > taken:  # of a step that was cut short, and is taken again
            continue
        with readable(file, "Without it the alarm cannot tell which answers were judged."):
            told = json.loads(file.read_text(encoding="utf-8"))
            found.append(OpenLook(**{**told, "duels": tuple(Duel(**d) for d in told["duels"])}))
    return found


def votes_by_pair(tools: Tools, number: int) -> dict[str, list[Vote]]:
    """The votes in force on the round's pairs of policy against untouched model."""
    found: dict[str, list[Vote]] = {}
    for v in tools.store.votes(round=number, stream="reference"):
        found.setdefault(v.pair_id, []).append(v)
    return found


def counted(look: OpenLook, votes: Mapping[str, Sequence[Vote]]) -> Counted:
    """What these votes, by pair, say of a look; a pair of two votes counts once, one of skips not at all."""
    duels, wins, full = [], [], True
    for duel in look.duels:
        if not duel.pair:
            duels.append(duel)
            wins.append(win(0.0, 0.0))
            continue
        cast = votes.get(duel.pair, ())
        full = full and bool(cast)
        said = [OUTCOME[v.verdict] for v in cast if v.verdict is not None]
        if said:
            share = sum(said) / len(said)
            duels.append(duel)
            wins.append(share if duel.policy_is_a else 1 - share)
    return Counted(duels, wins, full)
