"""A data set read and checked as a whole."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from backflip.core.errors import DataError
from backflip.data.forms import read_row, recognise, require_columns
from backflip.data.records import Form, Messages, Preference, Record, Thumb
from backflip.data.sources import Row, read_rows

FEW = 4
"""From so many preferences on, the same text on one side of all of them is no chance."""
SOME = 20
"""From so many preferences on, a side that is always the longer one is worth a warning."""


class Table(NamedTuple):
    """The usable rows of a data set."""

    form: Form
    records: list[Record]
    left_out: list[str]
    """What was wrong with each row that was left out."""
    warnings: list[str]


def read_table(source: str, form: Form | None = None, *, part: str | None = None, skip_bad: bool = False) -> Table:
    """Read `source` (see `read_rows`) as `form`, or as what its columns say.

    With `skip_bad`, rows that cannot be used are left out.
    Raises: DataError for a source that is not there, has no rows or not the needed columns, for the first row
    that cannot be used (without `skip_bad`), and for preferences of which one side is always the same text.
    """
    return table_of(read_rows(source, part), source, form, skip_bad=skip_bad)


def table_of(
    rows: Iterator[Row | DataError], source: str, form: Form | None = None, *, skip_bad: bool = False
) -> Table:
    """Check rows as a whole; `source` is what messages call them. See `read_table`, also for what is raised."""
    left_out: list[str] = []
    first = next(rows, None)
    while isinstance(first, DataError):
        _leave_out(first, left_out, skip_bad)
        first = next(rows, None)
    if first is None:
        raise _nothing(source, left_out)
    if form is None:
        form = recognise(first.values, source)
    require_columns(first.values, form, source)
    records = []
    for row in chain([first], rows):
        record = _record(row, form)
        if isinstance(record, DataError):
            _leave_out(record, left_out, skip_bad)
        else:
            records.append(record)
    if not records:
        raise _nothing(source, left_out)
    preferences = [r for r in records if isinstance(r, Preference)]
    return Table(form, records, left_out, warnings_about(preferences, source))


def _record(row: Row | DataError, form: Form) -> Record | DataError:
    """The row as a record, or why it cannot be one."""
    try:
        return row if isinstance(row, DataError) else read_row(form, row.values, row.where, row.split)
    except DataError as e:
        return e


def _leave_out(e: DataError, left_out: list[str], skip_bad: bool) -> None:
    if not skip_bad:
        raise e
    left_out.append(str(e).partition("\n")[0])


def _nothing(source: str, left_out: Sequence[str]) -> DataError:
    if left_out:
        return DataError(
            f"{source} has no row that can be used ({len(left_out)} cannot).\nThe first of them: {left_out[0]}\n"
            "Look at the file: its form may be another than it seems."
        )
    return DataError(
        f"{source} holds no rows.\nIt is empty, or what made it was stopped too early.\nGive a file that holds data."
    )


def warnings_about(preferences: Sequence[Preference], source: str) -> list[str]:
    """What a user should know about these preferences before a reward is fitted on them.

    Raises: DataError when one side is the same text throughout: a reward could learn nothing but that text.
    """
    decided = [p for p in preferences if not p.tie]
    out = []
    if len(decided) >= FEW:
        for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
            if len({getattr(p, side) for p in decided}) == 1:
                raise DataError(
                    f"{source} is one-sided: {side} is the same text in all {len(decided)} rows.\n"
                    f"A reward fitted on it would know that one text, and nothing about {other} answers.\n"
                    "Give preferences between different answers; good answers alone are demonstrations."
                )
    if len(decided) >= SOME:
        longer = sum(len(p.chosen) > len(p.rejected) for p in decided)
        shorter = sum(len(p.chosen) < len(p.rejected) for p in decided)
        for count, word in ((longer, "longer"), (shorter, "shorter")):
            if count == len(decided):
                out.append(f"every chosen answer is {word} than the rejected one: a reward may learn length alone")
    odd = [p.where for p in preferences if p.strength_ignored]
    if odd:
        out.append(f"strength is not 1, 2 or 3 in {len(odd)} of {len(preferences)} rows, first {odd[0]}: ignored there")
    if preferences and not decided:
        out.append("every row is a tie: no preference can be learnt from these rows alone")
    return out


class Judgements(NamedTuple):
    """Preferences of which each says something of its own."""

    kept: list[Preference]
    repeated: int
    """Rows that say again what the same rater has said."""
    against: list[str]
    """What was wrong with rows that take back what the same rater has said, for other answers of the same pair."""


def judgements(preferences: Sequence[Preference]) -> Judgements:
    """Each rater's first judgement of each pair of answers; what repeats or contradicts it is told apart."""
    said: dict[tuple[Messages, frozenset[str], str, str], Preference] = {}
    repeated, against = 0, []
    for p in preferences:
        key = (p.prompt, frozenset((p.chosen, p.rejected)), p.rater, p.pair)
        known = said.setdefault(key, p)
        if known is p:
            continue
        if known.tie == p.tie and (p.tie or known.chosen == p.chosen):
            repeated += 1
        else:
            against.append(f"{p.where}: the same rater says otherwise in {known.where}")
    return Judgements(list(said.values()), repeated, against)


def pair_thumbs(thumbs: Sequence[Thumb]) -> tuple[list[Preference], int]:
    """(preferences, thumbs left over): each answer a rater liked against one to the same prompt they disliked.

    Every answer is used at least once where there is one for the other side, and none more often than needed:
    m liked and n disliked answers make max(m, n) pairs. Where the data do not say who judged, all is one rater.
    Raises: DataError when every label is the same, or no prompt has answers of both kinds.
    """
    if len({t.up for t in thumbs}) == 1:
        raise DataError(
            f"All {len(thumbs)} labels are {'true' if thumbs[0].up else 'false'}: none is better than another.\n"
            "The column label may have been filled by default, or the data set cut down to one kind.\n"
            "Give answers of both kinds; good answers alone are demonstrations: leave the column label out."
        )
    groups: dict[tuple[Messages, str], tuple[list[Thumb], list[Thumb]]] = defaultdict(lambda: ([], []))
    for t in thumbs:
        groups[t.prompt, t.rater][not t.up].append(t)
    out: list[Preference] = []
    used: set[str] = set()
    for (prompt, rater), (ups, downs) in groups.items():
        for i in range(max(len(ups), len(downs)) if ups and downs else 0):
            up, down = ups[i % len(ups)], downs[i % len(downs)]
            if up.answer == down.answer:
                continue
            used |= {up.where, down.where}
            out.append(
                Preference(
                    where=f"{up.where} and {down.where}", prompt=prompt, chosen=up.answer, rejected=down.answer,
                    rater=rater, rater_kind=up.rater_kind, split=up.split or down.split,
                )
            )  # fmt: skip
    if not out:
        raise DataError(
            "No prompt has both an answer that was liked and another that was not.\n"
            "Thumbs become preferences by comparing answers to the same prompt of the same rater.\n"
            "Collect several answers to each prompt."
        )
    return out, sum(t.where not in used for t in thumbs)
