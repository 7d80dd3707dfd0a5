"""Simulated raters: personas that see some attributes of the true utility and err at a known rate.

Knows nothing about prompts or texts: a rater is shown two judged answers and votes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, floor
from typing import Literal

from backflip.core.config import require
from backflip.core.errors import ConfigError
from backflip.core.records import Judged, Pair, Rater, Vote
from backflip.core.rng import generator
from backflip.raters.kinds import KINDS, Kind
from backflip.raters.rankings import choices

Skim = Callable[[str, float], Judged]
"""What an answer, by its sample's id, is worth to somebody who leaves this share of it unread, from the end."""


@dataclass(frozen=True, kw_only=True)
class Persona:
    """One kind of simulated rater, and how many of them there are."""

    name: str = "crowd"
    """Its raters are called name-1, name-2, ..."""
    kind: Kind = ""
    """A ready-made kind: "expert", "careless", "hurried" (sees warmth and length only), "cannot-fact-check",
    "form-blind", "flattered" (likes being agreed with) or "adversarial". It sets the keys below that stand at their
    defaults; empty for none."""
    sees: tuple[str, ...] = ()
    """Attributes of the true utility it looks at, weighted as the task weights them; none named means all."""
    blind: tuple[str, ...] = ()
    """Attributes that it does not see, of those it would look at."""
    likes: dict[str, float] = field(default_factory=dict)
    """What an attribute is worth to it beyond the task's weight; below 0 it dislikes it."""
    beta: float = 0.0
    """How sure it is of a difference: the better answer wins with odds of exp(beta x difference of utility). 0: always
    sure; below 0 it prefers the worse."""
    error: float = 0.15
    """Share of votes that go wrong, 0 to 0.5: the choice is flipped; a tie becomes either side, by lot."""
    lapse: float = 0.0
    """Share of votes, 0 to 1, cast without a look: either side, by lot."""
    fatigue: float = 0.0
    """How much the lapse grows with every round after the first."""
    myopia: float = 0.0
    """Share of an answer, from its end, that is left unread; 0 to 0.9."""
    tie_width: float = 0.05
    """Two answers whose utilities differ by no more than this are a tie (the unit is that of the utility)."""
    position_bias: float = 0.0
    """Share of votes, 0 to 1, that go to the answer shown first, whatever it says."""
    count: int = 6
    """How many raters of this kind the crowd holds, where `raters.size` does not say how large it is."""
    share: float = 0.0
    """Share of the crowd's `raters.size` raters; the shares of all kinds sum to 1."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", "a name that is not empty")
        require(len(set(self.sees)) == len(self.sees), "sees", "a list that names each attribute once")
        require(0 <= self.error <= 0.5, "error", "a number from 0 to 0.5")
        require(0 <= self.tie_width < float("inf"), "tie_width", "a number of at least 0")
        require(0 <= self.position_bias <= 1, "position_bias", "a number from 0 to 1")
        require(len(set(self.blind)) == len(self.blind), "blind", "a list that names each attribute once")
        for key in ("lapse", "fatigue", "share"):
            require(0 <= getattr(self, key) <= 1, key, "a number from 0 to 1")
        require(0 <= self.myopia <= 0.9, "myopia", "a number from 0 to 0.9")
        require(self.count >= 1, "count", "a whole number of at least 1")

    def settled(self) -> "Persona":
        """The same with what its kind sets, for each key that stands at its default."""
        default = Persona()
        taken = {k: v for k, v in KINDS[self.kind].items() if getattr(self, k) == getattr(default, k)}
        return replace(self, **taken)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Who rates: people, or by default six simulated raters who see everything and err in 15% of votes."""

    by: Literal["personas", "people"] = "personas"
    """"people" leaves every vote to the people who are invited with `backflip rate`; the personas then stay silent."""
    personas: tuple[Persona, ...] = (Persona(),)
    """The kinds of raters; write one [[raters.personas]] table for each."""
    size: int = 0
    """Raters in all, where the personas say what share of the crowd they are; 0 where they say how many."""

    def __post_init__(self) -> None:
        require(len(self.personas) > 0, "personas", "a list of at least one persona")
        names = [p.name for p in self.personas]
        require(len(set(names)) == len(names), "personas", "a list in which each name stands once")
        shares = sum(p.share for p in self.personas)
        if self.size or shares:
            fits = f"a list whose shares sum to 1 (they sum to {shares:g}), none of them 0"
            require(abs(shares - 1) < 1e-6 and all(p.share for p in self.personas), "personas", fits)
            enough = f"a whole number of at least {len(self.personas)}, one rater for each persona"
            require(self.size >= len(self.personas), "size", enough)

    def counts(self) -> tuple[int, ...]:
        """How many raters there are of each persona; shares are rounded so that all are `size`."""
        if not self.size:
            return tuple(p.count for p in self.personas)
        spare = self.size - len(self.personas)  # each has one
        exact = [max(0.0, p.share * self.size - 1) for p in self.personas]
        scaled = [x * spare / (sum(exact) or 1.0) for x in exact]
        whole = [floor(x + 1e-9) for x in scaled]
        by_rest = sorted(range(len(whole)), key=lambda i: whole[i] - scaled[i])
        for i in by_rest[: spare - sum(whole)]:
            whole[i] += 1
        return tuple(1 + n for n in whole)


class PersonaRater:
    """One simulated rater (a `core.protocols.SimulatedRater`)."""

    def __init__(self, persona: Persona, number: int, weights: Mapping[str, float], seed: int) -> None:
        """`weights` are the true utility's, by attribute; what a kind names and the task has not is left out."""
        self.id = f"{persona.name}-{number}"
        self.persona = persona.settled()
        seen = [n for n in self.persona.sees or weights if n in weights and n not in self.persona.blind]
        likes = {n: w for n, w in self.persona.likes.items() if n in weights}
        self._all = len(seen) == len(weights) and not likes
        self._weights = {n: weights[n] * (n in seen) + likes.get(n, 0.0) for n in weights if n in seen or n in likes}
        self._seed = seed

    def utility(self, judged: Judged) -> float:
        """What this rater sees in an answer: the value, or the weighted sum of the attributes it sees."""
        if self._all:
            return judged.value
        return sum(weight * judged.attributes[name] for name, weight in self._weights.items())

    def choose(
        self, pair_id: str, a: Judged, b: Judged, *, shown: Literal["ab", "ba"], round: int = 1
    ) -> Literal["a", "b", "tie"]:
        """The vote on one pair. Its luck depends on (seed, pair, rater) only, so the order of calls does not matter."""
        who = self.persona
        erring, biased, side, lapsed, doubt = generator(self._seed, "vote", pair_id, self.id).random(5)
        by_lot: Literal["a", "b"] = "a" if side < 0.5 else "b"
        if lapsed < who.lapse + who.fatigue * max(round - 1, 0):
            return by_lot
        if biased < who.position_bias:
            return "a" if shown == "ab" else "b"
        gap = self.utility(a) - self.utility(b)
        wrong = erring < who.error
        if abs(gap) <= who.tie_width:
            return by_lot if wrong else "tie"
        prefers_a = gap > 0 if who.beta == 0 else doubt < 1 / (1 + exp(-max(-500.0, min(500.0, who.beta * gap))))
        return "a" if prefers_a != wrong else "b"

    def order(self, ranking: str, answers: Mapping[str, Judged], round: int = 1) -> list[list[str]]:
        """The ids of judged answers from best to worst, equally good ones together.

        An insertion sort whose comparisons err as `choose` does, so that the order never contradicts itself.
        """
        groups: list[list[str]] = []
        for new in answers:
            low, high = 0, len(groups)
            while low < high:
                at = (low + high) // 2
                met = groups[at][0]
                choice = self.choose(f"{ranking}/{met}/{new}", answers[new], answers[met], shown="ba", round=round)
                if choice == "tie":
                    groups[at].append(new)
                    break
                low, high = (low, at) if choice == "a" else (at + 1, high)
            else:
                groups.insert(low, [new])
        return groups


class SimulatedCrowd:
    """The raters of a `Crowd`, ready to vote on judged answers."""

    def __init__(self, crowd: Crowd, weights: Mapping[str, float], seed: int) -> None:
        """`weights` are the true utility's, by attribute.

        Raises: ConfigError when a persona sees an attribute that is not among them.
        """
        for i, persona in enumerate(crowd.personas):
            for key, name in ((k, n) for k in ("sees", "blind", "likes") for n in getattr(persona, k)):
                if name not in weights:
                    raise ConfigError(
                        f'raters.personas[{i}].{key} = "{name}" does not fit.\nIt must be one of {", ".join(weights)}.'
                    )
        self._seed = seed
        self._raters = tuple(
            PersonaRater(p, n, weights, seed)
            for p, count in zip(crowd.personas, crowd.counts(), strict=True)
            for n in range(1, count + 1)
        )

    def raters(self) -> tuple[Rater, ...]:
        """Everybody in the crowd, as records."""
        return tuple(Rater(id=r.id, kind="persona", name=r.id) for r in self._raters)

    def raters_for(self, pair_id: str, k: int = 1) -> tuple[PersonaRater, ...]:
        """The `k` different raters who judge a pair, by lot; the whole crowd if it is smaller.

        The lot depends on (seed, pair) only, and the first rater is the same for every `k`.
        Raises: ValueError when `k` is below 1.
        """
        if k < 1:
            raise ValueError(f"a pair needs at least one rater, not {k}")
        order = generator(self._seed, "raters", pair_id).permutation(len(self._raters))
        return tuple(self._raters[i] for i in order[:k])

    def rank(
        self, pairs: Sequence[Pair], answers: Mapping[str, Judged], *, at: float, skim: Skim | None = None
    ) -> list[Vote]:
        """The votes that follow from each rater's order of one ranking's answers; `answers` by sample id.

        Keys, raters, times and `skim` as in `votes`. The answers are looked at in an order drawn by lot.
        """
        ranking, cast = pairs[0].ranking, []
        asked = sorted({s for p in pairs for s in (p.sample_a, p.sample_b)})
        for rater in self.raters_for(ranking, pairs[0].raters_wanted):
            lot = generator(self._seed, "shown", ranking, rater.id).permutation(len(asked))
            seen = [asked[i] for i in lot]
            looked = {s: self._look(rater, s, answers[s], skim) for s in seen}
            said = choices(pairs, rater.order(ranking, looked, pairs[0].round))
            for p in pairs:
                shown: Literal["ab", "ba"] = "ab" if seen.index(p.sample_a) < seen.index(p.sample_b) else "ba"
                key = f"{p.id}/{rater.id}"
                cast.append(
                    Vote(key=key, pair_id=p.id, rater_id=rater.id, choice=said[p.id], shown=shown, latency_s=0.0, at=at)
                )
        return cast

    def _look(self, rater: PersonaRater, sample: str, judged: Judged, skim: Skim | None) -> Judged:
        """What the rater has read of an answer. Raises: ValueError where it does not read all and nobody can tell."""
        if not rater.persona.myopia:
            return judged
        if skim is None:
            raise ValueError(f"{rater.id} leaves a part of each answer unread: pass `skim`")
        return skim(sample, rater.persona.myopia)

    def votes(self, pair: Pair, a: Judged, b: Judged, *, at: float, skim: Skim | None = None) -> list[Vote]:
        """One vote from each rater the pair wants (`pair.raters_wanted`), cast at `at` (seconds since the epoch, UTC).

        `skim` is asked for what a rater with `myopia` sees.
        The order on the screen is drawn by lot for each rater. Keys are `pair/rater`: casting again changes nothing.
        """
        cast: list[Vote] = []
        for rater in self.raters_for(pair.id, pair.raters_wanted):
            heads = generator(self._seed, "shown", pair.id, rater.id).random() < 0.5
            shown: Literal["ab", "ba"] = "ab" if heads else "ba"
            one, other = self._look(rater, pair.sample_a, a, skim), self._look(rater, pair.sample_b, b, skim)
            choice = rater.choose(pair.id, one, other, shown=shown, round=pair.round)
            key = f"{pair.id}/{rater.id}"
            cast.append(
                Vote(key=key, pair_id=pair.id, rater_id=rater.id, choice=choice, shown=shown, latency_s=0.0, at=at)
            )
        return cast
