"""From the store to `ReportData`. Reads only; draws nothing, words nothing."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from statistics import fmean, stdev
from typing import Literal

from backflip.core.records import Judged, Metric, Prompt, Sample
from backflip.core.rng import generator
from backflip.cycle.folder import LOOKS
from backflip.cycle.raters import RaterFigures
from backflip.cycle.watch import warned
from backflip.cycle.wins import metrics_now
from backflip.report.best_of import best_of_n
from backflip.report.data import (
    Attribute,
    Baseline,
    Comparison,
    Counts,
    Estimate,
    Fit,
    Lengths,
    Other,
    PeopleRate,
    ReportData,
    Shown,
    SideBySide,
    Step,
    Timing,
    Version,
)
from backflip.report.figures import Figures
from backflip.report.stop import where_to_stop
from backflip.report.verdict import judge_score
from backflip.report.votes import judged_by, rater_rows
from backflip.store import Store

Judge = Callable[[Prompt, Sample], Judged | None]
"""The true utility of one stored answer; None where it has none."""

REFERENCE = "reference"
OTHERS = ("base", LOOKS)
"""How the versions begin whose answers are neither the untouched model's nor a finished policy's."""
STEPS = ("sample", "rate", "fit", "optimise", "measure")


def gather(
    store: Store,
    *,
    judge: Judge | None = None,
    kl_target: float | None = None,
    pairs: int = 20,
    learned: Sequence[RaterFigures] = (),
) -> ReportData:
    """Read a run, finished or not.

    judge: true utility of single answers, shown beside them; without it the page shows the texts alone.
    kl_target: nats per answer that the leash aims at, when it has a target.
    learned: what the votes say of the raters (see `cycle.raters`).
    pairs: how many pairs of answers to draw (with the run's seed) for the side-by-side.
    """
    metrics = metrics_now(store)
    figures = Figures(metrics)
    raters, votes = store.raters(), store.votes()
    samples, prompts = store.samples(), {p.id: p for p in store.prompts()}
    seed, rounds = store.note("seed") or "", store.rounds()
    weights = _mapping(store.note("weights"))
    monitor = _comparisons(figures, "monitor", weights, samples, prompts)
    final = _comparisons(figures, "final", weights, samples, prompts)
    versions, baseline = _versions(figures), baseline_of(samples, prompts, judge)
    split, before, after = _shown(samples)
    base = next(iter(store.models(kind="base")), None)
    found = ReportData(
        task=store.note("task") or "",
        base_model="" if base is None else PurePath(base.path).name,
        judged_by=judged_by(raters, votes),
        simulated=any(r.kind == "persona" for r in raters) or bool(weights),
        counts=Counts(samples=len(samples), pairs=len(store.pairs()), votes=len(votes)),
        rounds_done=sum("measure" in store.steps_done(r) for r in rounds),
        final=final[-1] if final else None,
        monitor=monitor,
        others=_others(figures, "final") or _others(figures, "monitor"),
        stage_zero=bool(store.models(kind="sft")),
        people=_people(figures),
        versions=versions,
        verdict=judge_score(versions),
        baseline=baseline,
        steps=_steps(figures),
        warnings=warned(metrics),
        best_of=best_of_n(figures),
        weights=_numbers(weights),
        kl_target=kl_target,
        fits=_fits(figures),
        raters=rater_rows(raters, votes, store.vote_log(), learned),
        side_by_side=_side_by_side(before, after, prompts, judge, seed, pairs),
        side_by_side_split=split,
        lengths=tuple(
            Lengths(policy=group[0].policy, tokens=tuple(s.length for s in group)) for group in (before, after) if group
        ),
        timing=tuple(Timing(round=r, seconds=_in_order(s)) for r in rounds if (s := store.seconds(r))),
        plan=store.note("plan") or "",
        seed=seed,
        machine=store.note("machine") or "",
        versions_used={k: str(v) for k, v in _mapping(store.note("versions")).items()},
    )
    return replace(found, stop=where_to_stop(found))


def gather_path(
    metrics: Sequence[Metric], weights_noted: str | None, baseline: Baseline | None, kl_target: float | None = None
) -> ReportData:
    """No more than the panel draws, from the figures alone: quick enough to be asked for again and again.

    `metrics` as `cycle.wins.metrics_now` has them; `weights_noted` is the store's note of the true utility's weights.
    """
    figures = Figures(metrics)
    versions, weights = _versions(figures), _numbers(_mapping(weights_noted))
    found = ReportData(
        task="", base_model="", judged_by="", simulated=bool(weights), rounds_done=0,
        counts=Counts(samples=0, pairs=0, votes=0), people=_people(figures), versions=versions,
        verdict=judge_score(versions), baseline=baseline, steps=_steps(figures), kl_target=kl_target,
        best_of=best_of_n(figures), weights=weights,
    )  # fmt: skip
    return replace(found, stop=where_to_stop(found))


def _people(figures: Figures) -> tuple[PeopleRate, ...]:
    return tuple(
        PeopleRate(round=r, win_rate=e)
        for r, t in figures.places("measure")
        if t == 0 and (e := figures.estimate(r, "measure", "people/win_rate"))
    )


def _in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    """The steps of a round as they follow each other; steps of other names come last."""
    known = [step for step in STEPS if step in seconds]
    return {step: seconds[step] for step in [*known, *(s for s in seconds if s not in STEPS)]}


def _mapping(note: str | None) -> dict[str, object]:
    value = json.loads(note) if note else {}
    return value if isinstance(value, dict) else {}


def _comparisons(
    figures: Figures,
    split: Literal["monitor", "final"],
    weights: Mapping[str, object],
    samples: Sequence[Sample],
    prompts: Mapping[str, Prompt],
) -> tuple[Comparison, ...]:
    """One per round that measured this split, in order."""
    there = [s for s in samples if s.purpose == split and not s.policy.startswith(OTHERS)]
    answered = [{s.prompt_id for s in there if (s.policy == REFERENCE) == r} for r in (0, 1)]
    out = []
    for number, tick in figures.places("measure"):
        measured = figures.values(number, "measure")
        if tick or not any(name.startswith(f"{split}/") for name in measured):
            continue

        def get(name: str, number: int = number) -> Estimate | None:
            return figures.estimate(number, "measure", f"{split}/{name}")

        out.append(
            Comparison(
                round=number,
                split=split,
                prompts=len(answered[0] & answered[1] & set(prompts)),
                win_rate=get("win_rate"),
                kl=get("kl"),
                utility=get("utility"),
                utility_reference=get("utility_reference"),
                length=get("length"),
                length_reference=get("length_reference"),
                distinct2_ratio=get("distinct2_ratio"),
                nats_added=get("reference_nats_added"),
                length_correlation=get("length_correlation"),
                spread=get("spread"),
                spread_reference=get("spread_reference"),
                attributes=_attributes(measured, split, weights, get),
            )
        )
    return tuple(out)


def _others(figures: Figures, split: Literal["monitor", "final"]) -> tuple[Other, ...]:
    """Every other model as the newest round measured it."""
    measured = [r for r, t in figures.places("measure") if t == 0]
    if not measured:
        return ()
    newest, start = max(measured), f"{split}/against/"
    names = [n.removeprefix(start).partition("/")[0] for n in figures.values(newest, "measure") if n.startswith(start)]

    def get(name: str, what: str) -> Estimate | None:
        return figures.estimate(newest, "measure", f"{start}{name}/{what}")

    return tuple(
        Other(
            name=name,
            round=newest,
            split=split,
            win_rate=get(name, "win_rate"),
            win_rate_reference=get(name, "win_rate_reference"),
            utility=get(name, "utility"),
            length=get(name, "length"),
        )
        for name in dict.fromkeys(names)
    )


def _attributes(
    measured: Mapping[str, Metric],
    split: str,
    weights: Mapping[str, object],
    get: Callable[[str], Estimate | None],
) -> tuple[Attribute, ...]:
    names = dict.fromkeys(
        name.rpartition("/")[2]
        for kind in ("attribute_gain", "attribute")
        for name in measured
        if name.startswith(f"{split}/{kind}/")
    )
    gains = {n: g.value for n in names if (g := get(f"attribute_gain/{n}"))}
    weight = {n: float(w) for n in names if isinstance(w := weights.get(n), int | float)}
    whole = sum(weight[n] * g for n, g in gains.items() if n in weight)
    return tuple(
        Attribute(
            name=n,
            reference=get(f"attribute_reference/{n}"),
            policy=get(f"attribute/{n}"),
            gain=get(f"attribute_gain/{n}"),
            weight=weight.get(n),
            share=weight[n] * gains[n] / whole if n in weight and n in gains and whole > 0 else None,
        )
        for n in names
    )


def _versions(figures: Figures) -> tuple[Version, ...]:
    """The untouched model and the policy after each measured round, scored by the newest reward."""
    places = figures.places("measure")
    scored = [r for r, t in places if "rescored/proxy" in figures.values(r, "measure", t)]
    newest = max(scored, default=0)
    known = {t for r, t in places if r == newest and "rescored/proxy" in figures.values(r, "measure", t)}
    known |= {r for r, t in places if t == 0 and "monitor/kl" in figures.values(r, "measure")}
    if not known:
        return ()
    last = max(known)
    return tuple(
        Version(
            number=k,
            kl=figures.estimate(k, "measure", "monitor/kl") if k else Estimate(value=0.0),
            proxy=figures.estimate(newest, "measure", "rescored/proxy", k),
            proxy_heldout=figures.estimate(newest, "measure", "rescored/proxy_heldout", k),
            utility=figures.estimate(k, "measure", "monitor/utility")
            if k
            else figures.estimate(last, "measure", "monitor/utility_reference"),
        )
        for k in sorted(known | {0})
    )


def _steps(figures: Figures) -> tuple[Step, ...]:
    return tuple(
        Step(round=r, tick=t, number=i, values={n: m.value for n, m in figures.values(r, "optimise", t).items()})
        for i, (r, t) in enumerate((p for p in figures.places("optimise") if p[1] > 0), start=1)
    )


def _fits(figures: Figures) -> tuple[Fit, ...]:
    out = []
    for number, tick in figures.places("fit"):
        if tick:
            continue
        votes = figures.estimate(number, "fit", "votes/count")
        out.append(
            Fit(
                round=number,
                heldout_accuracy=figures.estimate(number, "fit", "reward/heldout_accuracy"),
                train_accuracy=figures.estimate(number, "fit", "reward/train_accuracy"),
                agreement=figures.estimate(number, "fit", "raters/agreement"),
                heldout_logloss=figures.estimate(number, "fit", "reward/heldout_logloss"),
                votes=None if votes is None or not math.isfinite(votes.value) else round(votes.value),
            )
        )
    return tuple(out)


def _shown(samples: Sequence[Sample]) -> tuple[str, list[Sample], list[Sample]]:
    """(split, the reference's answers, the newest policy's) of the best split that has both; else what there is."""
    for purpose in ("final", "monitor"):
        there = [s for s in samples if s.purpose == purpose]
        before = [s for s in there if s.policy == REFERENCE]
        tuned = [s for s in there if not s.policy.startswith((REFERENCE, *OTHERS))]
        if before and tuned:
            newest = max(tuned, key=lambda s: (s.round, s.policy)).policy
            return purpose, before, [s for s in tuned if s.policy == newest]
    return "final", [s for s in samples if s.policy == REFERENCE], []


def _side_by_side(
    before: Sequence[Sample],
    after: Sequence[Sample],
    prompts: Mapping[str, Prompt],
    judge: Judge | None,
    seed: str,
    pairs: int,
) -> tuple[SideBySide, ...]:
    """`pairs` prompts drawn at random, for each one random answer of either model."""
    answers: tuple[dict[str, list[Sample]], ...] = (defaultdict(list), defaultdict(list))
    for group, into in zip((before, after), answers, strict=True):
        for s in group:
            into[s.prompt_id].append(s)
    both = sorted(set(answers[0]) & set(answers[1]) & set(prompts))
    rng = generator(int(seed) if seed.lstrip("-").isdigit() else 0, "report", "side by side")
    drawn = [both[i] for i in rng.permutation(len(both))[:pairs]]
    out = []
    for prompt in (prompts[i] for i in drawn):
        one, other = (sorted(a[prompt.id], key=lambda s: s.id) for a in answers)
        out.append(
            SideBySide(
                prompt=prompt.text,
                form=prompt.form,
                topic=prompt.topic,
                reference=_printed(prompt, one[rng.integers(len(one))], judge),
                policy=_printed(prompt, other[rng.integers(len(other))], judge),
            )
        )
    return tuple(out)


def _printed(prompt: Prompt, sample: Sample, judge: Judge | None) -> Shown:
    judged = judge(prompt, sample) if judge else None
    return Shown(
        text=sample.text,
        ended=sample.ended,
        length=sample.length,
        utility=judged.value if judged else None,
        attributes=dict(judged.attributes) if judged else {},
    )


def _numbers(found: Mapping[str, object]) -> dict[str, float]:
    return {n: float(w) for n, w in found.items() if isinstance(w, int | float)}


def baseline_of(samples: Sequence[Sample], prompts: Mapping[str, Prompt], judge: Judge | None) -> Baseline | None:
    """The true utility of the untouched model's answers; None where nobody knows it, or it does not vary."""
    if judge is None:
        return None

    def utilities(purpose: str) -> list[float]:
        theirs = (s for s in samples if s.policy == REFERENCE and s.purpose == purpose and s.prompt_id in prompts)
        judged = (judge(prompts[s.prompt_id], s) for s in theirs)
        return [j.value for j in judged if j is not None]

    measured = utilities("monitor") or utilities("final")
    if len(measured) < 2 or (sd := stdev(measured)) == 0:
        return None
    train = utilities("rate")
    return Baseline(sd=sd, answers=len(measured), train_mean=fmean(train) if train else None)
