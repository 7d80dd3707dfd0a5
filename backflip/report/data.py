"""Everything the page shows, as frozen records. Knows neither the store nor HTML."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from backflip.cycle.watch import Warned

Kind = Literal["together", "unclear", "behind", "parted", "perhaps", "fell"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured number and its interval, where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of the true utility, before (reference) and after (policy)."""

    name: str
    reference: Estimate | None = None
    policy: Estimate | None = None
    gain: Estimate | None = None
    weight: float | None = None
    """Its weight in the utility."""
    share: float | None = None
    """Its share of the whole gain in utility (weight times gain, over their sum)."""

    @property
    def risen(self) -> bool:
        """The interval of the gain lies above 0."""
        return self.gain is not None and self.gain.low is not None and self.gain.low > 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The policy after `round` against the untouched model, on one split of prompts."""

    round: int
    split: Literal["monitor", "final"]
    prompts: int
    """Prompts of that split that both models answered."""
    win_rate: Estimate | None = None
    """Share of comparisons won, ties half."""
    kl: Estimate | None = None
    """Nats per answer."""
    utility: Estimate | None = None
    utility_reference: Estimate | None = None
    length: Estimate | None = None
    """Tokens per answer."""
    length_reference: Estimate | None = None
    distinct2_ratio: Estimate | None = None
    """Distinct word pairs, relative to the reference's answers."""
    length_correlation: Estimate | None = None
    """How far score and length go together, Pearson's r over answers."""
    spread: Estimate | None = None
    """How unsure the reward is of an answer: standard deviation of its ensemble, where it has one."""
    spread_reference: Estimate | None = None
    nats_added: Estimate | None = None
    """The reference's surprise per token at the policy's answers, minus that at its own."""
    attributes: tuple[Attribute, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another model that the run was measured against, beside the untouched one: the base of stage 0, a baseline."""

    name: str
    round: int
    split: Literal["monitor", "final"]
    win_rate: Estimate | None = None
    """Share of comparisons that the policy wins against it, ties half."""
    win_rate_reference: Estimate | None = None
    """Share that the untouched model wins against it."""
    utility: Estimate | None = None
    """Its own true utility."""
    length: Estimate | None = None
    """Its tokens per answer."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """The policy after round `number` (0: the untouched model), on the monitor prompts."""

    number: int
    kl: Estimate | None = None
    """Nats per answer."""
    proxy: Estimate | None = None
    """Score under the newest reward: standard deviations of the untouched model's answers."""
    proxy_heldout: Estimate | None = None
    utility: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where to stop believing the score.

    together: at the last round proxy and true utility both rose. unclear: so they did, but the rise of
    the true utility lies within its interval. behind: only the true utility rose. parted: after `best`
    the proxy rose on while the true utility fell. perhaps: the same, but the fall lies within the
    interval. fell: after `best` neither rose.
    """

    kind: Kind
    best: Version
    """The version of highest true utility."""
    last: Version


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step: its metrics by name (means over the step's rollouts)."""

    round: int
    tick: int
    """Step within the round, from 1."""
    number: int
    """Step within the run, from 1."""
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One round's reward model: how often it agrees with votes it has not seen."""

    round: int
    heldout_accuracy: Estimate | None = None
    train_accuracy: Estimate | None = None
    agreement: Estimate | None = None
    """How often two raters of the same pair agree."""
    heldout_logloss: Estimate | None = None
    """Nats per vote."""
    votes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PeopleRate:
    """How often raters preferred the policy to the untouched model, in a round."""

    round: int
    win_rate: Estimate


@dataclass(frozen=True, kw_only=True)
class RaterRow:
    """One rater's votes that stand (retracted ones left out)."""

    name: str
    kind: str
    votes: int
    ties: int
    skips: int
    retracted: int
    left: float | None
    """Share of decided votes that went to the answer shown on the left."""
    latency_s: float | None
    """Median."""
    compared: int
    """Votes of other raters on the same pairs."""
    agreed: int
    reliability: Estimate | None = None
    """How often a decided vote is for the better answer, as learned together with the reward."""
    without: Estimate | None = None
    """Change of the reward's accuracy on held-out votes when it is learned without this rater."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One answer as it is printed. Its text is hostile until escaped."""

    text: str
    ended: bool
    length: int
    utility: float | None = None
    attributes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """One prompt, answered before and after."""

    prompt: str
    form: str
    topic: str
    reference: Shown
    policy: Shown


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of every answer of one policy."""

    policy: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds a round spent in each of its steps."""

    round: int
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """True utility of the untouched model's answers, one answer at a time."""

    sd: float
    """Standard deviation between answers (monitor prompts, or final ones)."""
    answers: int
    train_mean: float | None = None
    """Mean on training prompts: where the steps of the optimiser start."""


@dataclass(frozen=True, kw_only=True)
class BestPoint:
    """What best of `n` of the untouched model's answers gains over one answer."""

    n: int
    kl: float
    """Nats per answer, at most."""
    proxy: Estimate
    """Under the newest reward: standard deviations of the untouched model's answers."""
    gold: Estimate | None = None
    """In standard deviations of gold over those answers."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """One form of over-optimisation, fitted to gold's best-of-n curve."""

    form: str
    """"best_of_n" or "rl"."""
    peak: Estimate | None = None
    """Nats at which gold is highest; None: no peak in sight."""
    error: Estimate | None = None
    """Root mean square error of what it foretold of n > N / 4 on other prompts, in gold's own unit."""
    flat_error: Estimate | None = None
    """The same for the guess that gold stays as it was."""
    gain: Estimate | None = None
    """Squared error of that guess less that of the law; interval over prompts."""


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """Best of n under the newest reward; every interval is over prompts."""

    points: tuple[BestPoint, ...]
    laws: tuple[Law, ...] = ()
    peak: Estimate | None = None
    """Nats at which gold is highest, by the law that foretold better."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where along the path to stop, if that can be told."""

    said: str
    """One sentence, which begins with "Stop here" or "No peak in sight", or says why neither can be said."""
    over: str = ""
    """What the interval is over."""
    at: Estimate | None = None
    """Nats from the untouched model; None where nothing says to stop."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """One answer behind a point. Its texts are hostile until escaped."""

    prompt: str
    text: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Behind:
    """Some answers of the policy at one point of its path."""

    key: str
    """The point's name: "r2" after round 2, "r2-s6" at its step 6."""
    title: str
    answers: tuple[Read, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much the run has stored."""

    samples: int
    pairs: int
    votes: int


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """An answer that the reward likes and gold does not. Its texts are hostile until escaped."""

    prompt: str
    answer: str
    reference: str
    score: float
    """Reward of the answer, less that of the untouched model's."""


@dataclass(frozen=True, kw_only=True)
class AlarmTold:
    """What an alarm that rang said, and the answers that show it."""

    round: int
    told: str
    samples: tuple[Unlike, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """A whole run. Empty tuples and None mean "no such data": the page leaves that panel out."""

    task: str
    base_model: str
    judged_by: str
    """Who voted, in words: "simulated raters", "people" ..."""
    simulated: bool
    """Some votes, and any true utility, come from a simulation."""
    counts: Counts
    rounds_done: int
    """Rounds whose last step is done."""
    final: Comparison | None = None
    monitor: tuple[Comparison, ...] = ()
    others: tuple[Other, ...] = ()
    stage_zero: bool = False
    """The untouched model was made by fine-tuning on demonstrations."""
    people: tuple[PeopleRate, ...] = ()
    versions: tuple[Version, ...] = ()
    verdict: Verdict | None = None
    baseline: Baseline | None = None
    steps: tuple[Step, ...] = ()
    kl_target: float | None = None
    """Nats per answer that the leash aims at."""
    best_of: BestOf | None = None
    stop: Stop | None = None
    behind: tuple[Behind, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    """What each attribute weighs in the true utility."""
    fits: tuple[Fit, ...] = ()
    raters: tuple[RaterRow, ...] = ()
    alarms: tuple[AlarmTold, ...] = ()
    warnings: tuple[Warned, ...] = ()
    """Signs without gold along the climbs that the score may have ceased to mean what is wanted."""
    side_by_side: tuple[SideBySide, ...] = ()
    side_by_side_split: str = "final"
    lengths: tuple[Lengths, ...] = ()
    timing: tuple[Timing, ...] = ()
    plan: str = ""
    seed: str = ""
    machine: str = ""
    versions_used: dict[str, str] = field(default_factory=dict)
    """Library -> version."""

    @property
    def headline(self) -> Comparison | None:
        """What the headline speaks of: the final prompts, or the monitor prompts until those are measured."""
        return self.final or (self.monitor[-1] if self.monitor else None)


def as_dict(data: ReportData) -> dict[str, Any]:
    """The same figures as the page, as plain JSON types. Numbers that are not finite become None."""
    found = plain(asdict(data))
    assert isinstance(found, dict)
    return found


def plain(value: Any) -> Any:
    """A value as JSON holds it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
