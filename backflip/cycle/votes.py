"""Votes and thumbs beside the features of the answers they are about: what a fit reads. No model is loaded."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.records import TALK, Feedback, Pair, Purpose, Sample, Thumbed, ThumbVote, Vote
from backflip.core.rng import generator
from backflip.cycle.artefacts import kept, load_array
from backflip.cycle.plan import Plan
from backflip.stats.calibration import OUTCOME
from backflip.store import Store

Array = NDArray[np.float64]
ROUND_FEATURES = "features-rate.safetensors"
"""Features of the answers a round drew for rating, in its folder."""
Features = dict[int, tuple[list[str], Array]]
"""(sample ids, features (B, F)) by round; 0 holds imported answers, `CHAT` those that were chatted for."""
CHAT: Final = -1
READ: Final[tuple[Purpose, ...]] = ("rate", "chat")
"""What answers that a fit may read were drawn for."""


class Table(NamedTuple):
    """Votes of one kind beside the answers they are about: features (B, F), prompt (B,), feedback into them."""

    features: Array
    prompt: list[str]
    feedback: list[Feedback]
    thumbs: list[Thumbed]

    def decided(self) -> "Table":
        """Without "skip", which says nothing of the answers, and without thumbs."""
        return self._replace(feedback=[f for f in self.feedback if f.choice != "skip"], thumbs=[])

    def only(self, keep: Callable[[str], bool]) -> "Table":
        """The votes and thumbs on the prompts, by id, that `keep` holds for."""
        return self._replace(
            feedback=[f for f in self.feedback if keep(self.prompt[f.a])],
            thumbs=[t for t in self.thumbs if keep(self.prompt[t.item])],
        )

    def apart(self, rows: Array) -> Array:
        """(P, ...) what an answer a has in `rows` (B, ...), one an answer, less what its b has."""
        a, b = np.array([(f.a, f.b) for f in self.feedback], dtype=np.int64).reshape(-1, 2).T
        return np.asarray(rows[a] - rows[b])

    @property
    def outcome(self) -> Array:
        """(P,) what each vote is worth to its answer a: 1, a half or 0. Of decided votes only."""
        return np.array([OUTCOME[f.choice] for f in self.feedback])


def kept_apart(plan: Plan, prompt_id: str) -> bool:
    """Whether the votes on a prompt fit the check instead of the reward; by lot, and the same in every round."""
    return plan.fit.apart > 0 and bool(generator(plan.seed, "apart", prompt_id).random() < plan.fit.apart)


def features_file(artefact: Path, purpose: Literal["rate", "chat"]) -> Path:
    """Where the features of imported answers ("rate") or of a chat's lie, beside their tokens."""
    own = "features.safetensors" if purpose == "rate" else f"{artefact.stem}.features.safetensors"
    return artefact.with_name(own)


def stored_features(root: Path, store: Store) -> Features:
    """The features that the run in `root` has computed so far, as the step `fit` reads them."""
    found: Features = {}
    for number in store.rounds():
        path = root / "rounds" / f"r{number}" / ROUND_FEATURES
        found |= _found(number, path, store.samples(round=number, purpose="rate"))
    files: dict[Path, list[Sample]] = {}
    for s in store.samples(round=0, purpose="rate"):
        files.setdefault(features_file(root / s.artefact, "rate"), []).append(s)
    for s in store.samples(purpose="chat"):
        files.setdefault(features_file(root / s.artefact, "chat"), []).append(s)
    for place, (path, samples) in enumerate(files.items()):
        found |= _found(-1 - place, path, samples)
    return found


def _found(key: int, path: Path, samples: Sequence[Sample]) -> Features:
    rows = kept(path, lambda: load_array(path, "features"), len(samples)) if samples else None
    return {} if rows is None else {key: ([s.id for s in samples], rows)}


def known_votes(store: Store, table: Features, votes: Iterable[Vote]) -> list[Vote]:
    """Those votes of which both answers' features are in `table`."""
    pairs, there = {p.id: p for p in store.pairs()}, {i for ids, _ in table.values() for i in ids}
    return [v for v in votes if {pairs[v.pair_id].sample_a, pairs[v.pair_id].sample_b} <= there]


def votes_table(store: Store, table: Features, votes: Sequence[Vote], thumbs: Sequence[ThumbVote] = ()) -> Table:
    """Votes ("bad" a tie) and thumbs with the features of the answers they are about.

    A thumb on an answer that no fit may read, one to a monitor prompt say, is left out.
    """
    pairs: dict[str, Pair] = {p.id: p for p in store.pairs()}
    weight = vote_weights(pairs.values())
    index: dict[str, int] = {}
    features: list[Array] = []
    for ids, rows in table.values():
        index |= {sample: len(features) + i for i, sample in enumerate(ids)}
        features += list(rows)
    owner = {s.id: s.prompt_id for p in READ for s in store.samples(purpose=p)}
    prompt = [owner[sample] for sample in index]
    feedback = []
    for v in sorted(votes, key=lambda v: v.key):  # not by arrival: a resumed run may have cast them in another order
        pair, choice = pairs[v.pair_id], v.verdict or ("skip" if v.choice == "skip" else None)
        if choice is not None and pair.sample_a in index and pair.sample_b in index:
            feedback.append(
                Feedback(
                    a=index[pair.sample_a], b=index[pair.sample_b], choice=choice, rater_id=v.rater_id,
                    weight=weight[pair.id], shown=_shown(v, pair), strength=v.strength or 0,
                )
            )  # fmt: skip
    train = {p.id for p in store.prompts(split="train")}
    given = [
        Thumbed(item=index[t.sample_id], up=t.up, rater_id=t.rater_id)
        for t in sorted(thumbs, key=lambda t: t.key)
        if t.sample_id in index and owner[t.sample_id] in train
    ]
    return Table(np.stack(features), prompt, feedback, given)


def _shown(vote: Vote, pair: Pair) -> Literal[-1, 0, 1]:
    """Which answer stood first, as in `Feedback`; of imported votes it may be a guess, of chats it is no lot."""
    if pair.round == 0 or pair.id.startswith(TALK):
        return 0
    return 1 if vote.shown == "ab" else -1


def vote_weights(pairs: Collection[Pair]) -> dict[str, float]:
    """What a vote on each pair, by its id, weighs.

    The votes that follow from one rater's ranking weigh as much together as one vote (Ouyang et al. 2022, eq. 1).
    """
    size = Counter(p.ranking or p.id for p in pairs)
    return {p.id: 1 / size[p.ranking or p.id] for p in pairs}
