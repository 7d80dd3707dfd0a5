"""Simulated raters: personas that see some attributes of the true utility and err at a known rate.

Knows nothing about prompts or texts: a rater is shown two judged answers and votes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from backflip.core.config import require
from backflip.core.errors import ConfigError
from backflip.core.records import Judged, Pair, Rater, Vote
from backflip.core.rng import generator
from backflip.raters.rankings import choices


@dataclass(frozen=True, kw_only=True)
class Persona:
    """One kind of simulated rater, and how many of them there are."""

    name: str = "crowd"
    """Its raters are called name-1, name-2, ..."""
    sees: tuple[str, ...] = ()
    """Attributes of the true utility it looks at, weighted as the task weights them; none named means all."""
    error: float = 0.15
    """Share of votes that go wrong, 0 to 0.5: the choice is flipped; a tie becomes either side, by lot."""
    tie_width: float = 0.05
    """Two answers whose utilities differ by no more than this are a tie (the unit is that of the utility)."""
    position_bias: float = 0.0
    """Share of votes, 0 to 1, that go to the answer shown first, whatever it says."""
    count: int = 6
    """How many raters of this kind the crowd holds."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", "a name that is not empty")
        require(len(set(self.sees)) == len(self.sees), "sees", "a list that names each attribute once")
        require(0 <= self.error <= 0.5, "error", "a number from 0 to 0.5")
        require(0 <= self.tie_width < float("inf"), "tie_width", "a number of at least 0")
        require(0 <= self.position_bias <= 1, "position_bias", "a number from 0 to 1")
        require(self.count >= 1, "count", "a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Who rates: people, or by default six simulated raters who see everything and err in 15% of votes."""

    by: Literal["personas", "people"] = "personas"
    """"people" leaves every vote to the people who are invited with `backflip rate`; the personas then stay silent."""
    personas: tuple[Persona, ...] = (Persona(),)
    """The kinds of raters; write one [[raters.personas]] table for each."""

    def __post_init__(self) -> None:
        require(len(self.personas) > 0, "personas", "a list of at least one persona")
        names = [p.name for p in self.personas]
        require(len(set(names)) == len(names), "personas", "a list in which each name stands once")


class PersonaRater:
    """One simulated rater (a `core.protocols.SimulatedRater`)."""

    def __init__(self, persona: Persona, number: int, weights: Mapping[str, float], seed: int) -> None:
        self.id = f"{persona.name}-{number}"
        self.persona = persona
        self._weights = {name: weights[name] for name in persona.sees}
        self._seed = seed

    def utility(self, judged: Judged) -> float:
        """What this rater sees in an answer: the value, or the weighted sum of the attributes it sees."""
        if not self.persona.sees:
            return judged.value
        return sum(weight * judged.attributes[name] for name, weight in self._weights.items())

    def choose(self, pair_id: str, a: Judged, b: Judged, *, shown: Literal["ab", "ba"]) -> Literal["a", "b", "tie"]:
        """The vote on one pair. Its luck depends on (seed, pair, rater) only, so the order of calls does not matter."""
        erring, biased, side = generator(self._seed, "vote", pair_id, self.id).random(3)
        if biased < self.persona.position_bias:
            return "a" if shown == "ab" else "b"
        gap = self.utility(a) - self.utility(b)
        wrong = erring < self.persona.error
        if abs(gap) <= self.persona.tie_width:
            if not wrong:
                return "tie"
            return "a" if side < 0.5 else "b"
        return "a" if (gap > 0) != wrong else "b"

    def order(self, ranking: str, answers: Mapping[str, Judged]) -> list[list[str]]:
        """The ids of judged answers from best to worst, equally good ones together.

        An insertion sort whose comparisons err as `choose` does, so that the order never contradicts itself.
        """
        groups: list[list[str]] = []
        for new in answers:
            low, high = 0, len(groups)
            while low < high:
                at = (low + high) // 2
                met = groups[at][0]
                choice = self.choose(f"{ranking}/{met}/{new}", answers[new], answers[met], shown="ba")
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
            for name in persona.sees:
                if name not in weights:
                    raise ConfigError(
                        f'raters.personas[{i}].sees = "{name}" does not fit.\nIt must be one of {", ".join(weights)}.'
                    )
        self._seed = seed
        self._raters = tuple(PersonaRater(p, n, weights, seed) for p in crowd.personas for n in range(1, p.count + 1))

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

    def rank(self, pairs: Sequence[Pair], answers: Mapping[str, Judged], *, at: float) -> list[Vote]:
        """The votes that follow from each rater's order of one ranking's answers; `answers` by sample id.

        Keys, raters and times as in `votes`. The answers are looked at in an order drawn by lot.
        """
        ranking, cast = pairs[0].ranking, []
        asked = sorted({s for p in pairs for s in (p.sample_a, p.sample_b)})
        for rater in self.raters_for(ranking, pairs[0].raters_wanted):
            lot = generator(self._seed, "shown", ranking, rater.id).permutation(len(asked))
            seen = [asked[i] for i in lot]
            said = choices(pairs, rater.order(ranking, {s: answers[s] for s in seen}))
            for p in pairs:
                shown: Literal["ab", "ba"] = "ab" if seen.index(p.sample_a) < seen.index(p.sample_b) else "ba"
                key = f"{p.id}/{rater.id}"
                cast.append(
                    Vote(key=key, pair_id=p.id, rater_id=rater.id, choice=said[p.id], shown=shown, latency_s=0.0, at=at)
                )
        return cast

    def votes(self, pair: Pair, a: Judged, b: Judged, *, at: float) -> list[Vote]:
        """One vote from each rater the pair wants (`pair.raters_wanted`), cast at `at` (seconds since the epoch, UTC).

        The order on the screen is drawn by lot for each rater. Keys are `pair/rater`: casting again changes nothing.
        """
        cast: list[Vote] = []
        for rater in self.raters_for(pair.id, pair.raters_wanted):
            heads = generator(self._seed, "shown", pair.id, rater.id).random() < 0.5
            shown: Literal["ab", "ba"] = "ab" if heads else "ba"
            choice = rater.choose(pair.id, a, b, shown=shown)
            key = f"{pair.id}/{rater.id}"
            cast.append(
                Vote(key=key, pair_id=pair.id, rater_id=rater.id, choice=choice, shown=shown, latency_s=0.0, at=at)
            )
        return cast
