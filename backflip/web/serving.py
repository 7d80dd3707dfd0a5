"""Which pair is shown to whom next, and in which order its answers stand.

Kept in memory, and made anew from the store at any time: a server that was killed knows after its start what it knew
before, but for the leases. One thread works on a `Desk`, the server's event loop.
"""

import heapq
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, final

from backflip.core.records import Pair, Vote
from backflip.core.rng import seed_of
from backflip.cycle.plan import Rate

REPEAT_AFTER = 10
"""Other votes of a rater that lie between two judgements of the same pair."""
_LOT = 2**63


class Asked(NamedTuple):
    """A pair as it is put to a rater."""

    pair: Pair
    repeat: Literal[0, 1]
    shown: Literal["ab", "ba"]


@final
class Desk:
    """Hands out pairs: the newest round first, no pair twice to one rater but for planned repeats."""

    def __init__(self, seed: int, rate: Rate, lease_s: float) -> None:
        self._seed, self._rate, self._lease_s = seed, rate, lease_s
        self.pairs: dict[str, Pair] = {}
        """Every pair that wants raters, by id."""
        self.rankings: dict[str, list[Pair]] = {}
        """The pairs of every ranking, newest round first."""
        self._judges: dict[str, set[str]] = {}
        self._again: set[tuple[str, str]] = set()
        self._mine: dict[str, dict[str, None]] = {}
        self._due: dict[str, deque[tuple[str, int]]] = {}
        self._leases: dict[str, dict[str, float]] = {}
        self._held: dict[str, dict[str, None]] = {}
        self._ends: list[tuple[float, str, str]] = []
        self._free: list[tuple[int, int, str]] = []
        self._in_free: set[str] = set()
        self._counted = (float("-inf"), 0, 0)

    def open(self, pairs: Iterable[Pair]) -> None:
        """Know these pairs too."""
        for pair in pairs:
            if pair.raters_wanted < 1 or pair.id in self.pairs:
                continue
            self.pairs[pair.id] = pair
            if pair.ranking:
                self.rankings.setdefault(pair.ranking, []).append(pair)
            else:
                self._offer(pair)
        self.rankings = dict(sorted(self.rankings.items(), key=lambda item: -item[1][0].round))

    def note(self, vote: Vote) -> None:
        """A vote or retraction has been stored. Noting it twice changes nothing."""
        pair, rater = self.pairs.get(vote.pair_id), vote.rater_id
        if pair is None:
            return
        if vote.repeat:
            (self._again.discard if vote.choice == "retract" else self._again.add)((pair.id, rater))
            return
        judges, mine = self._judges.setdefault(pair.id, set()), self._mine.setdefault(rater, {})
        if vote.choice == "retract":
            judges.discard(rater)
            mine.pop(pair.id, None)
            if not pair.ranking:  # first of all to the one who took it back
                self._lease(pair.id, rater, time.monotonic())
                self._offer(pair)
            return
        judges.add(rater)
        self._end_lease(pair.ranking or pair.id, rater)
        if pair.id not in mine:
            mine[pair.id] = None
            if not pair.ranking and pair.stream == "fit" and self._comes_back(pair.id):
                self._due.setdefault(rater, deque()).append((pair.id, len(mine)))

    def next_pairs(self, rater: str, count: int, held: Collection[str]) -> list[Asked]:
        """Up to `count` pairs for a rater, without those they hold already; each is theirs for a while."""
        now = time.monotonic()
        self._let_go(now)
        mine = self._mine.get(rater, {})
        for name in held:  # still being looked at
            if name in self._held.get(rater, {}):
                self._lease(name, rater, now)
        found = [self.pairs[n] for n in self._held.get(rater, {}) if n not in held and n in self.pairs][:count]
        found += self._draw(rater, count - len(found), {*mine, *held, *(p.id for p in found)})
        for pair in found:
            self._lease(pair.id, rater, now)
        asked = [Asked(p, 0, self.shown(p.id, rater, 0)) for p in found]
        again = self._repeat(rater, held) if len(asked) < count or (found and self._due.get(rater)) else None
        if again is not None:
            asked = [*asked[: count - 1], Asked(again, 1, self.shown(again.id, rater, 1))]
        return asked

    def soon(self, count: int) -> list[Pair]:
        """About `count` of the pairs that are handed out next."""
        return [self.pairs[name] for _, _, name in self._free[:count]]

    def next_rankings(self, rater: str, count: int, held: Collection[str]) -> list[list[Pair]]:
        """Up to `count` rankings for a rater, each as its pairs."""
        now = time.monotonic()
        self._let_go(now)
        found: list[list[Pair]] = []
        for name, pairs in self.rankings.items():
            first = pairs[0]
            if len(found) == count:
                break
            if name in held or rater in self._judges.get(first.id, ()) or self._room(first, rater) < 1:
                continue
            self._lease(name, rater, now)
            found.append(pairs)
        return found

    def may_repeat(self, pair_id: str, rater: str) -> bool:
        """Whether the plan has this rater judge this pair once more."""
        return self._comes_back(pair_id) and rater in self._judges.get(pair_id, ())

    def shown(self, pair_id: str, rater: str, repeat: int) -> Literal["ab", "ba"]:
        """The order on the screen, by lot: "ba" puts answer b on the left."""
        return "ba" if seed_of(self._seed, "shown", pair_id, rater, repeat) % 2 else "ab"

    def judged_by(self, rater: str) -> int:
        """How many pairs a rater has judged."""
        return len(self._mine.get(rater, ()))

    def progress(self) -> tuple[int, int]:
        """(votes, votes wanted) of the newest round's pairs, those against the reference left out; a second old."""
        if time.monotonic() - self._counted[0] < 1.0:
            return self._counted[1:]
        sampled = [p for p in self.pairs.values() if p.stream != "reference"]
        newest = max((p.round for p in sampled), default=0)
        ours = [p for p in sampled if p.round == newest]
        done = sum(min(len(self._judges.get(p.id, ())), p.raters_wanted) for p in ours)
        self._counted = (time.monotonic(), done, sum(p.raters_wanted for p in ours))
        return self._counted[1:]

    def _draw(self, rater: str, count: int, not_these: Collection[str]) -> list[Pair]:
        """The first `count` pairs that have room for this rater."""
        drawn: list[Pair] = []
        put_back: list[tuple[int, int, str]] = []
        while self._free and len(drawn) < count:
            place = heapq.heappop(self._free)
            pair = self.pairs[place[2]]
            room = self._room(pair, rater)
            if room < 1:
                self._in_free.discard(pair.id)
                continue
            if pair.id in not_these:
                put_back.append(place)
                continue
            drawn.append(pair)
            if room > 1:
                put_back.append(place)
            else:
                self._in_free.discard(pair.id)
        for place in put_back:
            heapq.heappush(self._free, place)
        return drawn

    def _repeat(self, rater: str, held: Collection[str]) -> Pair | None:
        """A pair that comes back to this rater now."""
        due, judged = self._due.get(rater), len(self._mine.get(rater, ()))
        while due and ((due[0][0], rater) in self._again or due[0][0] not in self._mine[rater]):
            due.popleft()
        if not due or judged - due[0][1] < REPEAT_AFTER or due[0][0] in held:
            return None
        return self.pairs[due[0][0]]

    def _comes_back(self, pair_id: str) -> bool:
        return seed_of(self._seed, "repeat", pair_id) < self._rate.repeat_share * _LOT

    def _room(self, pair: Pair, rater: str) -> int:
        """How many more raters a pair wants, those counted who are looking at it and are not this one."""
        judges = self._judges.get(pair.id, set())
        looking = sum(r != rater and r not in judges for r in self._leases.get(pair.ranking or pair.id, ()))
        return pair.raters_wanted - len(judges) - looking

    def _offer(self, pair: Pair) -> None:
        """Put a pair among those that are handed out."""
        if pair.id not in self._in_free and self._room(pair, "") > 0:
            self._in_free.add(pair.id)
            heapq.heappush(self._free, (-pair.round, seed_of(self._seed, "asked", pair.id), pair.id))

    def _lease(self, name: str, rater: str, now: float) -> None:
        until = now + self._lease_s
        self._leases.setdefault(name, {})[rater] = until
        self._held.setdefault(rater, {})[name] = None
        heapq.heappush(self._ends, (until, name, rater))

    def _end_lease(self, name: str, rater: str) -> None:
        self._leases.get(name, {}).pop(rater, None)
        self._held.get(rater, {}).pop(name, None)

    def _let_go(self, now: float) -> None:
        """Offer anew what was leased for too long."""
        while self._ends and self._ends[0][0] <= now:
            _, name, rater = heapq.heappop(self._ends)
            if self._leases.get(name, {}).get(rater, now + 1) <= now:
                self._end_lease(name, rater)
                if name in self.pairs:
                    self._offer(self.pairs[name])


def on_screen(pair: Pair, shown: Literal["ab", "ba"]) -> tuple[str, str]:
    """The samples on the left and on the right."""
    return (pair.sample_a, pair.sample_b) if shown == "ab" else (pair.sample_b, pair.sample_a)


def ids_of(pairs: Sequence[Pair]) -> Iterator[str]:
    """The samples of pairs, each as often as it stands there."""
    for pair in pairs:
        yield from (pair.sample_a, pair.sample_b)
