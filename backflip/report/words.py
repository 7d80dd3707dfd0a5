"""Numbers and findings in plain words: the headline, the verdict, the key figures."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from backflip.report.data import Comparison, Estimate, ReportData, Version

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """One number of the strip under the headline."""

    label: str
    value: str
    note: str
    simulated: bool = False


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """`value` with a true minus sign; a dash for None, words for what is not a number."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    value = round(value, digits) + 0.0  # no minus before a rounded zero
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """A share between 0 and 1 as a percentage."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{100 * value:.{digits}f}%".replace("-", "−")


def interval(estimate: Estimate | None, digits: int = 2, *, share: bool = False) -> str:
    """The interval in words, `0.12 to 0.34`; empty where none was computed."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    if share:
        return f"{percent(estimate.low)} to {percent(estimate.high)}"
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `42 s`, `3 min 20 s`, `1 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def count(n: int, one: str, many: str = "") -> str:
    """`1 vote`, `2 votes`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", " ")


def listed(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *front, last = items
    return f"{', '.join(front)} and {last}" if front else last


def headline(data: ReportData) -> str:
    """What the run has achieved, in one sentence."""
    measured = data.headline
    if measured is not None and measured.win_rate is not None:
        return f"The tuned model wins {_won(measured.win_rate)} of comparisons with the untouched model."
    if data.people:
        rate = data.people[-1].win_rate
        return f"Raters preferred the tuned model to the untouched one in {_won(rate)} of comparisons."
    if measured is not None or data.versions:
        return "The policy has been measured; nobody has compared it with the untouched model yet."
    have = [
        count(n, word)
        for n, word in (
            (data.counts.samples, "answer"),
            (data.counts.votes, "vote"),
            (len(data.fits), "fitted reward model"),
            (len(data.steps), "optimiser step"),
        )
        if n
    ]
    if not have:
        return "This run has not begun yet."
    state = "is under way" if data.counts.votes else "has only begun"
    return f"This run {state}: {listed(have)} so far."


def _won(rate: Estimate) -> str:
    span = interval(rate, share=True)
    return f"{percent(rate.value)} ({span})" if span else percent(rate.value)


def circumstances(data: ReportData) -> str:
    """Where and when the headline was measured; empty when nothing was."""
    measured = data.headline
    if measured is None:
        return ""
    rounds = f"after {count(measured.round, 'round')}"
    if measured.win_rate is not None:
        prompts = count(measured.prompts, "prompt") if measured.prompts else "prompts"
        alone = "kept for this measurement alone" if measured.split == "final" else "of the monitor split"
        said = f"Measured {rounds} on {prompts} {alone}"
    else:
        said = f"Measured {rounds}"
    if measured.kl is not None:
        said += f"; by then the model had moved {number(measured.kl.value, 1)} nats per answer (KL) from where it began"
    rate = measured.win_rate or (data.people[-1].win_rate if data.people else None)
    if rate and rate.low is not None and rate.high is not None and rate.low <= 0.5 <= rate.high:
        return f"{said}. The interval includes 50%: no clear difference yet."
    return f"{said}."


def believe(data: ReportData) -> str:
    """Where to stop believing the score, in one or two sentences; empty when nothing can be said."""
    v = data.verdict
    if v is None:
        return ""
    best, last = _place(v.best), _place(v.last)
    match v.kind:
        case "together":
            return f"The score can still be believed: at {last}, the score and the true utility were both rising."
        case "unclear":
            return (
                f"No sign yet that the score misleads: both still rose at {last}, "
                "but the last rise of the true utility lies within its interval."
            )
        case "behind":
            return f"The score does not flatter: at {last} the true utility still rose, and the score did not."
        case "parted":
            return f"Stop believing the score beyond {best}: after that it kept rising while the true utility fell."
        case "perhaps":
            return (
                f"Be wary of the score beyond {best}: after that it kept rising and the true utility did not, "
                "though the fall lies within its interval."
            )
        case "fell":
            return f"The best policy lies behind: after {best} neither the score nor the true utility rose."


def _place(version: Version) -> str:
    if version.number == 0:
        return "the untouched model"
    away = f" ({number(version.kl.value, 1)} nats)" if version.kl else ""
    return f"round {version.number}{away}"


def key_figures(data: ReportData) -> list[KeyFigure]:
    """The strip of numbers, most telling first; what was not measured is left out."""
    out = []
    if data.people:
        rate = data.people[-1].win_rate
        out.append(_figure("Win rate with raters", percent(rate.value), interval(rate, share=True), simulated=True))
    out += _compared(data.headline, data) if data.headline else []
    if data.fits and (accuracy := data.fits[-1].heldout_accuracy):
        agreement = data.fits[-1].agreement
        note = f"raters with each other: {percent(agreement.value)}" if agreement else "of votes it has not seen"
        out.append(_figure("Reward model right", percent(accuracy.value), note, simulated=True))
    if data.counts.votes:
        pairs = f"on {count(data.counts.pairs, 'pair')}"
        out.append(_figure("Votes", f"{data.counts.votes:,}".replace(",", " "), pairs, simulated=True))
    if not out:
        out.append(_figure("Answers", f"{data.counts.samples:,}".replace(",", " "), "sampled"))
    if data.steps:
        rounds = count(len({s.round for s in data.steps}), "round")
        out.append(_figure("Optimiser steps", str(len(data.steps)), f"in {rounds}"))
    if total := sum(sum(t.seconds.values()) for t in data.timing):
        out.append(_figure("Time", duration(total), "all steps together"))
    return [f if data.simulated else replace(f, simulated=False) for f in out]


def _compared(measured: Comparison, data: ReportData) -> list[KeyFigure]:
    out = []
    if measured.win_rate:
        span = interval(measured.win_rate, share=True) or f"{measured.split} prompts"
        out.append(_figure("Win rate", percent(measured.win_rate.value), span, simulated=True))
    if measured.kl:
        out.append(_figure("KL", number(measured.kl.value, 1), "nats per answer"))
    if measured.utility and measured.utility_reference:
        change = f"{number(measured.utility_reference.value)} → {number(measured.utility.value)}"
        gain = measured.utility.value - measured.utility_reference.value
        value = number(gain / data.baseline.sd, signed=True) + " SD" if data.baseline else number(gain, signed=True)
        out.append(_figure("True utility", value, change, simulated=True))
    if measured.attributes:
        risen = sum(a.risen for a in measured.attributes)
        value = f"{risen} of {len(measured.attributes)}"
        out.append(_figure("Attributes risen", value, "interval above 0", simulated=True))
    if measured.distinct2_ratio:
        value = percent(measured.distinct2_ratio.value)
        out.append(_figure("Variety kept", value, "distinct word pairs"))
    if measured.nats_added:
        value = number(measured.nats_added.value, signed=True)
        out.append(_figure("Surprise added", value, "reference nats per token"))
    return out


def _figure(label: str, value: str, note: str, *, simulated: bool = False) -> KeyFigure:
    return KeyFigure(label=label, value=value, note=note, simulated=simulated)
