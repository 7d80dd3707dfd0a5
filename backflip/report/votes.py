"""Who voted, how often, and how far they agree with each other."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import permutations
from statistics import fmean, median

from backflip.core.records import Rater, Vote
from backflip.cycle.raters import RaterFigures
from backflip.report.data import Estimate, RaterRow
from backflip.stats.bootstrap import Interval

VOTERS = {"person": "people", "persona": "simulated raters", "judge": "a language model as judge"}


def judged_by(raters: Sequence[Rater], votes: Iterable[Vote]) -> str:
    """Who voted, in words."""
    voted = {v.rater_id for v in votes}
    kinds = {r.kind for r in raters if r.id in voted or not voted}
    return " and ".join(word for kind, word in VOTERS.items() if kind in kinds)


def rater_rows(
    raters: Sequence[Rater], votes: Sequence[Vote], log: Iterable[Vote], learned: Sequence[RaterFigures] = ()
) -> tuple[RaterRow, ...]:
    """One row per rater who voted, most votes first. `votes` are those in force, `log` all ever cast.

    `learned`: what the votes say of the raters, where enough were cast.
    """
    trust = {f.id: f for f in learned}
    retracted = Counter(v.rater_id for v in log if v.choice == "retract")
    of_rater: dict[str, list[Vote]] = defaultdict(list)
    for v in votes:
        of_rater[v.rater_id].append(v)
    compared, agreed = _agreement(v for v in votes if v.choice != "skip")
    rows = []
    for r in raters:
        if not (mine := of_rater[r.id]):
            continue
        decided = [v for v in mine if v.choice in ("a", "b")]
        known = trust.get(r.id)
        rows.append(
            RaterRow(
                name=r.name,
                kind=r.kind,
                votes=sum(v.choice != "skip" for v in mine),
                ties=sum(v.verdict == "tie" for v in mine),
                skips=sum(v.choice == "skip" for v in mine),
                retracted=retracted[r.id],
                left=fmean(v.choice == v.shown[0] for v in decided) if decided else None,
                latency_s=median(v.latency_s for v in mine) if r.kind == "person" else None,
                compared=compared[r.id],
                agreed=agreed[r.id],
                reliability=_estimate(known.reliability if known else None),
                without=_estimate(known.without.accuracy_change if known and known.without else None),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.votes, row.name)))


def _estimate(found: Interval | None) -> Estimate | None:
    return None if found is None else Estimate(value=found.value, low=found.low, high=found.high)


def _agreement(votes: Iterable[Vote]) -> tuple[Counter[str], Counter[str]]:
    """By rater: other raters' votes on the same pairs, and how many of them say the same."""
    of_pair: dict[str, list[Vote]] = defaultdict(list)
    for v in votes:
        of_pair[v.pair_id].append(v)
    compared: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    for group in of_pair.values():
        for mine, other in permutations(group, 2):
            if other.rater_id != mine.rater_id:
                compared[mine.rater_id] += 1
                agreed[mine.rater_id] += mine.verdict == other.verdict
    return compared, agreed
