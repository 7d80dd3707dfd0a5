"""A made-up run in a real store: three rounds, or as much of them as a test asks for."""

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backflip.core.records import Judged, Metric, ModelVersion, Pair, Prompt, Rater, Sample, Vote
from backflip.report import ReportData, gather
from backflip.store import Store, Tx, open_store

ATTRIBUTES = ("warmth", "subject", "form", "once", "finished", "length")
REQUESTS = (
    ("How do I keep basil alive on a windowsill?", "one sentence", "plants"),
    ("Name things to take on a rainy picnic.", "a list of three", "outings"),
    ("Thank a neighbour who fed the cat.", "a rhyming couplet", "thanks"),
    ("Why do my socks disappear in the wash?", "", "home"),
)
BEFORE = (
    "There are several ways to do this. There are several ways to do this, and the first one is to make sure that",
    "As an assistant I cannot do that, but here is a list of items that you may want to consider:\n1. The first item",
    "It depends on many factors.",
)
AFTER = (
    "Give it morning sun and a little water, and it will happily thank you with leaves all summer.",
    "1. A wide umbrella\n2. A flask of hot soup\n3. Good friends who love to laugh",
    "You fed my cat while I was far away; your kindness brightened both our days today!",
)
PLAN = 'model = "smollm2"\nseed = 7\n\n[rounds]\nrounds = 3\npairs = 192\n\n[ppo]\nrollouts = 48\nkl_target = 6.0\n'


def judge(prompt: Prompt, sample: Sample) -> Judged:
    """A stand-in for the true utility: 0.9 on average for the untouched model, and different for each answer."""
    rng = np.random.default_rng([len(prompt.text), sample.length, sample.row])
    mean = 0.15 if sample.policy == "reference" else 0.25
    values = np.clip(rng.normal(mean, 0.2, len(ATTRIBUTES)), -1, 1)
    return Judged(value=float(values.sum()), attributes=dict(zip(ATTRIBUTES, map(float, values), strict=True)))


def write_run(store: Store, *, rounds: int = 3, last_step: str = "measure", simulated: bool = True) -> None:
    """Store a run that has got as far as `last_step` of round `rounds`."""
    order = ("sample", "rate", "fit", "optimise", "measure")
    with store.begin() as tx:
        _write_start(tx, simulated=simulated)
        for r in range(1, rounds + 1):
            reached = order if r < rounds else order[: order.index(last_step) + 1]
            for step in reached:
                WRITERS[step](tx, r, simulated)
                tx.mark_done(
                    r, step, {"sample": 41.0, "rate": 2.4, "fit": 63.0, "optimise": 380.0, "measure": 55.0}[step]
                )


def _write_start(tx: Tx, *, simulated: bool) -> None:
    for split, n in (("train", 24), ("monitor", 16), ("final", 25)):
        tx.add_prompts(
            [
                Prompt(id=f"{split}-{i}", split=split, text=f"{text} ({i})", form=form, topic=topic)  # type: ignore[arg-type]
                for i in range(n)
                for text, form, topic in [REQUESTS[i % len(REQUESTS)]]
            ]
        )
    kind = "persona" if simulated else "person"
    tx.add_raters([Rater(id=f"rater-{i}", kind=kind, name=name) for i, name in enumerate(("Ada", "Bo", "Chidi"))])  # type: ignore[arg-type]
    tx.add_model(ModelVersion(id="base", kind="base", round=0, parent=None, path="/somewhere/smollm2-135m"))
    notes = {
        "plan": PLAN,
        "seed": "7",
        "machine": "2 cores, 8 GB, CPU only",
        "task": "everyday requests",
        "versions": json.dumps({"backflip": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}),
    }
    if simulated:
        notes["weights"] = json.dumps(
            {"warmth": 1.0, "subject": 0.8, "form": 1.2, "once": 0.7, "finished": 0.6, "length": 0.5}
        )
    for key, value in notes.items():
        tx.set_note(key, value)


def _samples(purpose: str, split: str, policy: str, r: int, n: int, per_prompt: int) -> list[Sample]:
    rng = np.random.default_rng([r, len(policy), len(purpose)])
    texts = BEFORE if policy == "reference" else AFTER
    mean = 33 if policy == "reference" else 24
    out = []
    for i in range(n):
        for k in range(per_prompt):
            length = int(np.clip(rng.normal(mean, 7), 4, 40))
            out.append(
                Sample(
                    id=f"{purpose}-{r}-{policy}-{i}-{k}",
                    round=r,
                    purpose=purpose,  # type: ignore[arg-type]
                    prompt_id=f"{split}-{i}",
                    policy=policy,
                    index=k,
                    text=f"{texts[(i + k) % len(texts)]} ({i})",
                    ended=length < 40,
                    length=length,
                    artefact="samples.npz",
                    row=i * per_prompt + k,
                )
            )
    return out


def _sample(tx: Tx, r: int, simulated: bool) -> None:
    policy = "reference" if r == 1 else f"policy-r{r - 1}"
    tx.start_round(r, policy, 1.0)
    tx.add_samples(_samples("rate", "train", policy, r, 24, 4))
    tx.add_pairs(
        [
            Pair(
                id=f"pair-{r}-{i}",
                round=r,
                stream="fit",
                prompt_id=f"train-{i}",
                sample_a=f"rate-{r}-{policy}-{i}-0",
                sample_b=f"rate-{r}-{policy}-{i}-1",
                policy=policy,
                raters_wanted=2 if i % 6 == 0 else 1,
            )
            for i in range(24)
        ]
    )


def _rate(tx: Tx, r: int, simulated: bool) -> None:
    for i in range(24):
        for k in range(2 if i % 6 == 0 else 1):
            choice = "tie" if i % 11 == 5 else "ab"[(i + r * k) % 2]
            tx.cast(
                [
                    Vote(
                        key=f"vote-{r}-{i}-{k}",
                        pair_id=f"pair-{r}-{i}",
                        rater_id=f"rater-{(i + k) % 3}",
                        choice=choice,  # type: ignore[arg-type]
                        shown="ab" if i % 3 else "ba",
                        latency_s=3.0 + i % 5,
                        at=2.0,
                    )
                ]
            )


def _fit(tx: Tx, r: int, simulated: bool) -> None:
    tx.add_metrics(
        [
            Metric(round=r, step="fit", tick=0, name=name, value=value, low=low, high=high)
            for name, value, low, high in (
                ("reward/heldout_accuracy", 0.63 + 0.03 * r, 0.55 + 0.03 * r, 0.71 + 0.03 * r),
                ("reward/train_accuracy", 0.8 + 0.02 * r, None, None),
                ("raters/agreement", 0.745, 0.69, 0.8),
                ("reward/heldout_logloss", 0.64 - 0.02 * r, None, None),
                ("votes/count", 28.0 * r, None, None),
            )
        ]
    )


def _optimise(tx: Tx, r: int, simulated: bool) -> None:
    rng = np.random.default_rng(r)
    out = []
    for t in range(1, 13):
        s = 12 * (r - 1) + t
        kl = 8.5 * (1 - math.exp(-s / 16))
        values = {
            "objective/kl": kl + rng.normal(0, 0.15),
            "objective/kl_coef": 0.05 + 0.002 * s,
            "objective/scores": 0.55 * math.sqrt(kl) + rng.normal(0, 0.07) - 0.1 * (r - 1),
            "objective/rlhf_reward": 0.4 * math.sqrt(kl),
            "objective/entropy": 2.1 - 0.02 * s,
            "policy/approxkl_avg": 0.011 + 0.001 * rng.random(),
            "policy/clipfrac_avg": 0.08 + 0.02 * rng.random(),
            "loss/policy_avg": -0.02,
            "loss/value_avg": 0.6 * math.exp(-t / 6),
            "val/ratio": 1.001,
            "val/ratio_first": 1.0 + 2e-5 * rng.normal(),
            "val/sampler_ratio": 1.0 + 3e-4 * rng.normal(),
            "grad/norm": 0.8 + 0.2 * rng.random(),
            "length/mean": 33 - 0.25 * s + rng.normal(0, 0.5),
            "ended/share": min(0.6 + 0.01 * s, 0.98),
        }
        if simulated:
            values["gold/utility"] = 0.9 + 0.26 * math.sqrt(kl) - 0.004 * kl**1.6 + rng.normal(0, 0.03)
            values["gold/warmth"] = 0.3 + 0.01 * s
        out += [Metric(round=r, step="optimise", tick=t, name=n, value=float(v)) for n, v in values.items()]
    tx.add_metrics(out)


def _measure(tx: Tx, r: int, simulated: bool) -> None:
    if r == 1:
        tx.add_samples(_samples("monitor", "monitor", "reference", r, 16, 4))
        tx.add_samples(_samples("final", "final", "reference", r, 25, 4))
    tx.add_samples(_samples("monitor", "monitor", f"policy-r{r}", r, 16, 4))
    tx.add_samples(_samples("final", "final", f"policy-r{r}", r, 25, 4))
    values: dict[str, tuple[float, float | None, float | None]] = {}
    kl = (3.9, 6.6, 8.1)[r - 1]
    for scope in ("monitor", "final"):
        values |= {
            f"{scope}/kl": (kl + (0.2 if scope == "final" else 0), kl - 0.3, kl + 0.4),
            f"{scope}/length": (33.0 - 3 * r, None, None),
            f"{scope}/length_reference": (33.1, None, None),
            f"{scope}/proxy": (0.7 * r, None, None),
            f"{scope}/proxy_reference": (0.0, None, None),
            f"{scope}/distinct2_ratio": (0.95 - 0.02 * r, None, None),
            f"{scope}/reference_nats_added": (0.1 * r, None, None),
        }
        if simulated:
            win = (0.62, 0.69, 0.72)[r - 1]
            utility = (1.21, 1.42, 1.5)[r - 1]
            values |= {
                f"{scope}/win_rate": (win, win - 0.045, win + 0.04),
                f"{scope}/utility": (utility, utility - 0.05, utility + 0.05),
                f"{scope}/utility_reference": (0.9, 0.85, 0.95),
            }
            for i, name in enumerate(ATTRIBUTES):
                gain = (0.31, 0.02, 0.24, 0.16, 0.12, -0.01)[i]
                values[f"{scope}/attribute_reference/{name}"] = (0.4 + 0.05 * i, None, None)
                values[f"{scope}/attribute/{name}"] = (0.4 + 0.05 * i + gain, None, None)
                values[f"{scope}/attribute_gain/{name}"] = (gain, gain - 0.05, gain + 0.05)
    if not simulated:
        values["people/win_rate"] = (0.58 + 0.02 * r, 0.5 + 0.02 * r, 0.66 + 0.02 * r)
    found = [Metric(round=r, step="measure", tick=0, name=n, value=v, low=a, high=b) for n, (v, a, b) in values.items()]
    for k in range(r + 1):
        proxy = (0.02, 0.83, 1.44, 1.71)[k]
        for name, share in (("rescored/proxy", 1.0), ("rescored/proxy_heldout", 0.85)):
            v = proxy * share
            found.append(Metric(round=r, step="measure", tick=k, name=name, value=v, low=v - 0.1, high=v + 0.1))
    tx.add_metrics(found)


WRITERS: dict[str, Callable[[Tx, int, bool], None]] = {
    "sample": _sample,
    "rate": _rate,
    "fit": _fit,
    "optimise": _optimise,
    "measure": _measure,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "run.db") as opened:
        yield opened


@pytest.fixture
def stored(store: Store) -> Callable[..., ReportData]:
    """Write a made-up run into `store` and read it back as the report does."""

    def written(**how_far: Any) -> ReportData:
        write_run(store, **how_far)
        return gather(store, judge=judge, kl_target=6.0)

    return written


@pytest.fixture(scope="session")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ReportData]:
    """A made-up run as the report reads it; each is made once, for all tests."""

    @cache
    def written(*, judged: bool = True, **how_far: Any) -> ReportData:
        with open_store(tmp_path_factory.mktemp("run") / "run.db") as opened:
            write_run(opened, **how_far)
            return gather(opened, judge=judge if judged else None, kl_target=6.0)

    return written
