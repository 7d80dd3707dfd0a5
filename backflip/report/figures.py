"""A run's metrics by round, step, tick and name."""

from collections import defaultdict
from collections.abc import Iterable

from backflip.core.records import Metric
from backflip.report.data import Estimate


class Figures:
    """The run's metrics by round, step, tick and name."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._at: dict[tuple[int, str, int], dict[str, Metric]] = defaultdict(dict)
        for m in metrics:
            self._at[m.round, m.step, m.tick][m.name] = m

    def places(self, step: str) -> list[tuple[int, int]]:
        """(round, tick) of everything measured in that step, in order."""
        return sorted((r, t) for r, s, t in self._at if s == step)

    def values(self, number: int, step: str, tick: int = 0) -> dict[str, Metric]:
        """Everything measured there, by name."""
        return self._at.get((number, step, tick), {})

    def estimate(self, number: int, step: str, name: str, tick: int = 0) -> Estimate | None:
        """One figure with its interval; None when it was not measured."""
        m = self.values(number, step, tick).get(name)
        return None if m is None else Estimate(value=m.value, low=m.low, high=m.high)
