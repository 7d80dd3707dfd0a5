"""The report's panel, live: the same picture and the same sentence, for a run that may be under way."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backflip.core.records import Judged, Metric, Prompt, Sample
from backflip.policies.plan import STEERING
from backflip.tasks import TASKS
from backflip.web.served import Served

if TYPE_CHECKING:
    from backflip.report.data import Baseline


def live_panel(run: Served, metrics: Sequence[Metric]) -> dict[str, Any] | None:
    """The figure as Plotly draws it, in the light colours with their dark counterparts, and where to stop.

    `metrics` as `cycle.wins.metrics_now` has them. None before there is anything to draw.
    """
    if not any(m.name in ("objective/kl", "monitor/kl") for m in metrics):
        return None
    from backflip.report.data import plain  # scipy, which the report needs, takes long to import
    from backflip.report.gather import gather_path
    from backflip.report.palette import SWAP
    from backflip.report.panel import draw

    target = run.plan.ppo.kl_target if run.plan.optimise.by in STEERING else None
    data = gather_path(metrics, run.store.note("weights"), _baseline(run), target)
    figure = draw(data)
    if figure is None:
        return None
    return {
        "said": data.stop.said if data.stop else "",
        "over": data.stop.over if data.stop else "",
        "here": bool(data.stop and data.stop.at),
        "unit": figure.unit,
        "alt": figure.alt,
        "key": [{"label": k.label, "tone": k.tone, "mark": k.mark} for k in figure.key],
        "data": plain(figure.data),
        "layout": plain(figure.layout),
        "dark": SWAP,
    }


def _baseline(run: Served) -> "Baseline | None":
    """The true utility of the untouched model's answers: worked out once they are all there."""
    store, task = run.store, run.plan.task
    if run.baseline is not None or task.name not in TASKS or not store.metrics(name="monitor/utility"):
        return run.baseline
    from backflip.report.gather import baseline_of

    utility = TASKS[task.name].utility(task.weights or None)

    def judge(prompt: Prompt, sample: Sample) -> Judged:
        return utility.judge(prompt, sample.text, sample.ended)

    run.baseline = baseline_of(store.samples(policy="reference"), {p.id: p for p in store.prompts()}, judge)
    return run.baseline
