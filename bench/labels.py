"""What knowing the raters is worth: on people's votes from a folder of one's own, and on simulated crowds.

    python bench/labels.py [FOLDER] [--quick] [--only simulated,thirty,members]

FOLDER holds `ukpconvarg` and `llmfao`; without it only simulated crowds are measured. Held-out votes are judged by the
full rater model and by Bradley-Terry on all decisive votes, whose temperature, tie width and lean to the first answer
are then fitted on all training votes. What the model reads of the texts is kept in bench/out: ten minutes a set.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from crowds import simulate
from numpy.typing import NDArray
from selecting import measure_selection
from table import ROOT, Row, part, raw_file, relative, write_results
from thirty import measure_tastes, policy_wins, rows_of_policy, rows_of_tastes
from votes import Missing, People, features_of, read_votes

from backflip.stats.bootstrap import Interval, bootstrap_mean
from backflip.stats.evidence import Evidence, PairVotes
from backflip.stats.raters import ALIKE, Pooling, RaterFit, fit_raters, gaps_as_features
from backflip.stats.reliability import fit_crowd

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
COMMAND = "python bench/labels.py"
SETS = {"ukpconvarg": "ukp", "llmfao": "llmfao"}
PRIORS = (5.0, 60.0, 300.0, 1000.0, 3000.0)
"""Precisions of the weights that each model chooses from, by a quarter of its own training pairs or topics."""
EQUAL = Pooling(sensitivity=0.0, lapse=None, tie=0.0, position=0.0, bar=0.0, cut=0.0)
FULL = Pooling()
UNPOOLED = 6.0
"""A deviation so wide that no rater is drawn towards the usual."""


class Bench:
    """One set of votes with its features, and fits on a part of the votes."""

    def __init__(self, folder: Path, name: str) -> None:
        """Read the votes and their features."""
        self.people: People = read_votes(folder, name)
        self.features = features_of(self.people.texts, ROOT / "bench" / "out" / f"{name}.npy")
        self.groups = np.unique(np.array(self.people.texts.group), return_inverse=True)[1][self.people.a]

    def evidence(self, use: Mask, choice: NDArray[np.int64] | None = None) -> Evidence:
        """The votes in `use`, perhaps with other choices."""
        p = self.people
        said = p.choice if choice is None else choice
        votes = PairVotes(p.a[use], p.b[use], said[use], p.rater[use], np.ones(int(use.sum()), dtype=np.int64))
        return Evidence(int(p.rater.max()) + 1, votes)

    def gap(self, fit: RaterFit) -> Array:
        """(P,) reward gaps of every vote."""
        reward = fit.score(self.features)
        return np.asarray(reward[self.people.a] - reward[self.people.b])

    def chosen(self, use: Mask, unit: NDArray[np.int64], fit: Callable[[Mask, float], RaterFit]) -> float:
        """The precision whose fit on three quarters of the units (P,) in `use` best foretells the votes on the rest."""
        units = np.random.default_rng(2).permutation(np.unique(unit[use]))
        held = np.isin(unit, units[: max(1, len(units) // 4)]) & use
        return max(PRIORS, key=lambda prior: self.logp(fit(use & ~held, prior), held).mean())

    def full(self, use: Mask, prior: float) -> RaterFit:
        """The rater model with the pooling assumed beforehand, without lapses: quick, to choose a precision with."""
        return fit_raters(self.features, self.evidence(use), Pooling(lapse=None), prior=prior)

    def plain(self, use: Mask, prior: float, choice: NDArray[np.int64] | None = None) -> RaterFit:
        """All-votes Bradley-Terry, then its temperature, tie width and lean."""
        said = self.people.choice if choice is None else choice
        fit = fit_raters(self.features, self.evidence(use & (said < 2), choice), ALIKE, prior=prior)
        column, a, b = gaps_as_features(self.gap(fit)[use])
        votes = self.evidence(use, choice).pairs
        assert votes is not None
        tuned = fit_raters(
            column, Evidence(int(self.people.rater.max()) + 1, votes._replace(a=a, b=b)), EQUAL, prior=0.01
        )
        return tuned._replace(weight=fit.weight * tuned.weight[0])

    def logp(self, fit: RaterFit, use: Mask) -> Array:
        """(P,) log-likelihood of the votes in `use`, in nats."""
        p = self.people
        chance = fit.probabilities(self.gap(fit)[use], p.rater[use], np.ones(int(use.sum()), dtype=np.int64))
        return np.asarray(np.log(chance[np.arange(len(chance)), p.choice[use]]))

    def majority(self, fit: RaterFit, use: Mask) -> tuple[Array, NDArray[np.int64]]:
        """Whether the reward agrees with the majority of the votes in `use`, pair by pair; and the pairs' groups."""
        p = self.people
        pairs, first, place = np.unique(p.pair[use], return_index=True, return_inverse=True)
        turned = np.where(p.a[use] == p.a[use][first][place], 1, -1)
        lead = np.bincount(place, turned * ((p.choice[use] == 0) * 1.0 - (p.choice[use] == 1)), len(pairs))
        ahead = self.gap(fit)[use][first]
        return ((ahead > 0) == (lead > 0)).astype(float)[lead != 0], self.groups[use][first][lead != 0]


def measure_people(folder: Path, name: str, quick: bool) -> dict[str, Any]:
    """Gains on unseen pairs and unseen topics, ablations, and what is left when raters are flipped."""
    bench = Bench(folder, name)
    pair = bench.people.pair
    luck = np.random.default_rng(0)
    test = np.isin(pair, luck.permutation(pair.max() + 1)[: (pair.max() + 1) // 5])
    plain = bench.plain(~test, bench.chosen(~test, pair, bench.plain))
    prior, started = bench.chosen(~test, pair, bench.full), time.monotonic()
    full = fit_crowd(bench.features, bench.evidence(~test), FULL, prior=prior)
    seconds = time.monotonic() - started
    ours, theirs = bench.logp(full, test), bench.logp(plain, test)
    right, right_plain = bench.majority(full, test)[0], bench.majority(plain, test)[0]
    out: dict[str, Any] = {
        "votes": len(pair),
        "seconds": seconds,
        "prior": prior,
        "spread": full.spread.tolist(),
        "usual": full.usual.tolist(),
        "plain": theirs.mean(),
        "full": ours.mean(),
        "gain": bootstrap_mean(ours - theirs, 0, unit=pair[test].tolist()),
        "gain, raters resampled": bootstrap_mean(ours - theirs, 0, unit=bench.people.rater[test].tolist()),
        "accuracy": right.mean(),
        "accuracy change": bootstrap_mean(right - right_plain, 0),
    }
    for i, trait in enumerate(("sensitivity", "lapse", "tie", "position", "pooling")):
        pooling = Pooling(lapse=None) if trait == "lapse" else FULL
        spread = np.full(6, UNPOOLED) if trait == "pooling" else np.where(np.arange(6) == i, 0.0, full.spread)
        less = fit_raters(bench.features, bench.evidence(~test), pooling, prior=prior, start=full, spread=spread)
        gain = bench.logp(less, test) - theirs
        out[f"without {trait}"] = bootstrap_mean(gain, 0, unit=pair[test].tolist())
    out["unseen groups"] = unseen_groups(bench, 2 if quick else 4)
    return out


def unseen_groups(bench: Bench, folds: int) -> dict[str, Interval]:
    """Gain and change of accuracy on topics or prompts that no vote of the fit was on; groups are resampled."""
    fold = np.random.default_rng(1).permutation(bench.groups.max() + 1)[bench.groups] % folds
    gains, changes, where, pairs_where = [], [], [], []
    for k in range(folds):
        test = fold == k
        plain = bench.plain(~test, bench.chosen(~test, bench.groups, bench.plain))
        prior = bench.chosen(~test, bench.groups, bench.full)
        full = fit_crowd(bench.features, bench.evidence(~test), FULL, prior=prior)
        gains.append(bench.logp(full, test) - bench.logp(plain, test))
        where.append(bench.groups[test])
        (ours, at), (theirs, _) = bench.majority(full, test), bench.majority(plain, test)
        changes.append(ours - theirs)
        pairs_where.append(at)
    return {
        "gain": bootstrap_mean(np.concatenate(gains), 0, unit=np.concatenate(where).tolist()),
        "accuracy change": bootstrap_mean(np.concatenate(changes), 0, unit=np.concatenate(pairs_where).tolist()),
    }


def measure_flipped(folder: Path, seeds: int) -> list[dict[str, float]]:
    """UKP with 30% of the raters' training votes turned round, a row a seed: accuracy of three rewards."""
    bench, rows = Bench(folder, "ukpconvarg"), []
    p = bench.people
    for seed in range(seeds):
        luck = np.random.default_rng(300 + seed)
        test = np.isin(p.pair, luck.permutation(p.pair.max() + 1)[: (p.pair.max() + 1) // 5])
        flipped = (luck.random(p.rater.max() + 1) < 0.3)[p.rater]
        said = np.where(flipped, np.array([1, 0, 2])[p.choice], p.choice)
        full = fit_crowd(bench.features, bench.evidence(~test, said), Pooling(lapse=None), prior=PRIORS[0])
        fits = {
            "plain": bench.plain(~test, PRIORS[0], said),
            "full": full,
            "oracle": bench.plain(~test & ~flipped, PRIORS[0]),
        }
        rows.append({k: float(bench.majority(f, test)[0].mean()) for k, f in fits.items()})
    return rows


def measure_members(folder: Path) -> float:
    """Seconds for a fit of UKP's votes and five from there, raters included, weighted by bootstraps over pairs."""
    bench = Bench(folder, "ukpconvarg")
    pair = bench.people.pair
    everything = bench.evidence(np.ones(len(pair), dtype=bool))
    votes = everything.pairs
    assert votes is not None
    started = time.monotonic()
    whole = fit_raters(bench.features, everything, Pooling(lapse=None), prior=PRIORS[0], ftol=1e-7)
    for seed in range(5):
        drawn = np.random.default_rng(seed).integers(pair.max() + 1, size=pair.max() + 1)
        weight = np.bincount(drawn, minlength=pair.max() + 1)[pair].astype(float)
        again = everything._replace(pairs=votes._replace(weight=weight))
        fit_raters(
            bench.features, again, Pooling(lapse=None), prior=PRIORS[0], start=whole, ftol=1e-7
        )  # as members are
    return time.monotonic() - started


def rows_of_people(name: str, found: dict[str, Any], row: Callable[..., Row]) -> list[Row]:
    """The rows of one set of votes."""
    bar = 0.04 if name == "ukp" else 0.12
    gain = f"{name} log-likelihood gain over all-votes BT"
    unseen = found["unseen groups"]
    rows = [
        row(gain, found["gain"], "nats a vote", f">= {bar}"),
        row(f"{gain}, lower bound", found["gain"], "nats a vote", "low > 0"),
        row(f"{gain}, raters resampled", found["gain, raters resampled"], "nats a vote", "low > 0"),
        row(f"{gain}, unseen {'topics' if name == 'ukp' else 'prompts'}", unseen["gain"], "nats a vote", "low > 0"),
        row(f"{name} reward accuracy change", found["accuracy change"], "of pairs", ">= -0.01"),
        row(f"{name} reward accuracy change, unseen", unseen["accuracy change"], "of pairs", ">= -0.01"),
    ]
    rows += [row(f"{name} gain {k}", v, "nats a vote", "") for k, v in found.items() if k.startswith("without")]
    return rows


def rows_of_crowds(found: dict[str, list[dict[str, float]]], row: Callable[..., Row]) -> list[Row]:
    """The rows of simulated crowds; seeds are resampled."""

    def over(mode: str, of: Callable[[dict[str, float]], float]) -> Interval:
        return bootstrap_mean([of(s) for s in found[mode]], 0)

    rows = [
        row("simulated adversarial reward accuracy", over("adversarial", lambda s: s["full"]), "of pairs", ">= 0.92"),
        row("recovered reliability adversarial", over("adversarial", lambda s: s["r"]), "correlation", ">= 0.93"),
        row("simulated careless gain", over("careless", lambda s: s["full"] - s["plain"]), "of pairs", ">= 0.03"),
    ]
    for mode in found:
        rows += [
            row(f"simulated {mode}, {k}", over(mode, lambda s, k=k: s[k]), "", "")
            for k in ("plain", "full", "oracle", "r", "covered")
        ]
    return rows


class Parts:
    """The parts of this benchmark: made where they are missing or old, or, but for those named, as they lie there."""

    def __init__(self, quick: bool, settings: dict[str, Any], only: Collection[str]) -> None:
        """No part in `only`: all are made."""
        self.quick, self.settings, self.only = quick, settings, only

    def __call__(self, key: str, make: Callable[[], Any]) -> Any:
        """What a part found; None where it is not on the disk and not to be made."""
        if not self.only or key in self.only:
            return part("labels", key, self.quick, self.settings, make)
        file = raw_file("labels", key, self.quick)
        return json.loads(file.read_text(encoding="utf-8"))["result"] if file.exists() else None


def rows_of_selection(saved: dict[str, Any], row: Callable[..., Row]) -> list[Row]:
    """The rows on a choice of pairs."""
    unit = f"of random's labels ({saved['strategy']})"
    return [
        row("labels ratio to random, best-of-64", saved["ratio"], unit, "<= 0.6"),
        row("labels ratio to random, best-of-64, upper bound", saved["ratio"], "of labels", "high < 1"),
        row("selection, accuracy change", bootstrap_mean(saved["accuracy change"], 0), "of pairs", ""),
    ]


def rows_with_folder(folder: Path, keep: Parts, row: Callable[..., Row]) -> list[Row]:
    """The rows on people's votes. Raises: Missing."""
    rows: list[Row] = []
    for name, short in SETS.items():
        read_votes(folder, name)
        if found := keep(short, make=partial(measure_people, folder, name, keep.quick)):
            rows += rows_of_people(short, found, partial(row, short))
    if turned := keep("flipped", make=partial(measure_flipped, folder, 2 if keep.quick else 4)):
        share = [sum(s[k] - s["plain"] for s in turned) for k in ("full", "oracle")]
        told = share[0] / share[1]
        rows.append(row("flipped", "flipped ukp raters recovered", told, "of the oracle's gain", ">= 0.9"))
    if seconds := keep("members", make=partial(measure_members, folder)):
        rows.append(row("members", "seconds to fit 60k votes, 5 members", seconds, "s", "<= 20"))
    return rows


def main() -> None:
    """Measure, write the results, print them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("folder", nargs="?", type=Path, help="holds ukpconvarg and llmfao; left out: simulated only")
    options.add_argument("--quick", action="store_true", help="fewer seeds and folds")
    options.add_argument("--only", default="", help="parts to make, the others as they lie there: simulated,thirty,ukp")
    given = options.parse_args()
    quick, folder = given.quick, given.folder
    seeds = 3 if quick else 20
    keep = Parts(quick, {"seeds": seeds, "priors": PRIORS}, [p for p in given.only.split(",") if p])
    command = " ".join([COMMAND, *(["FOLDER"] if folder else []), *(["--quick"] if quick else [])])

    def row(key: str, claim: str, figure: Any, unit: str, bar: str) -> Row:
        value, low, high = (*figure, None, None)[:3] if isinstance(figure, list | tuple) else (figure, None, None)
        raw = relative(raw_file("labels", key, quick))
        return Row(claim=claim, value=value, low=low, high=high, unit=unit, bar=bar, command=command, raw=raw)

    modes = ("clean", "careless", "adversarial")
    rows: list[Row] = []
    if found := keep("simulated", make=lambda: {m: [simulate(s, m) for s in range(seeds)] for m in modes}):
        rows += rows_of_crowds(found, partial(row, "simulated"))
    if saved := keep("selection", make=partial(measure_selection, seeds)):
        rows += rows_of_selection(saved, partial(row, "selection"))
    if tables := keep("thirty", make=measure_tastes):
        rows += rows_of_tastes(tables, partial(row, "thirty"))
    seen = range(1 if quick else 3)
    wins = [w for s in seen if (w := keep(f"thirty-policy-{s}", make=partial(policy_wins, s, "short")))]
    if len(wins) == len(seen):
        rows += rows_of_policy(wins, partial(row, "thirty-policy-0"))
    if folder is None:
        print("No folder was given: the rows on people's votes are left out.\nGive the one with ukpconvarg and llmfao.")
    else:
        try:
            rows += rows_with_folder(folder, keep, row)
        except Missing as missing:
            sys.exit(f"bench/labels.py: {missing}")
    write_results("labels", rows, quick, list(range(seeds)))


if __name__ == "__main__":
    main()
