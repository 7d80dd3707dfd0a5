"""The step `measure`: the policy against the untouched model, and every round re-scored by the newest reward."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backflip.core.protocols import Utility
from backflip.core.records import Metric, Prompt, Purpose, Sample
from backflip.core.rng import seed_of
from backflip.cycle.artefacts import UNREADABLE, load_answers, samples_of, save_answers, write_whole
from backflip.cycle.baselines import against_baselines
from backflip.cycle.best_of import best_of_n, drawn_for_best_of
from backflip.cycle.fit import learned_of_round
from backflip.cycle.folder import BASE, REFERENCE
from backflip.cycle.people import wait_for_people
from backflip.cycle.sample import ask_machines
from backflip.cycle.tools import Outcome, Tools
from backflip.cycle.wins import win_rate_by_people
from backflip.measure.compare import Side, compare
from backflip.raters.pairs import reference_pairs
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.fit import Reward
from backflip.rewards.model import features_of
from backflip.sampling.score import middle_layer
from backflip.stats.bootstrap import Interval, bootstrap_mean

Array = NDArray[np.float64]


def measure(number: int, tools: Tools) -> Outcome:
    """Monitor prompts after every round, final prompts after the last; people's held-out pairs are opened here."""
    plan = tools.plan
    reward, ensemble, _ = learned_of_round(number, tools)
    policy = f"policy-r{number}"
    metrics: list[Metric] = []
    splits: list[Purpose] = ["monitor", "final"] if number == plan.rounds else ["monitor"]
    for split in splits:
        reference, after = answered(number, tools, split, REFERENCE), answered(number, tools, split, policy)
        sides = [_side(tools, reward, s) for s in (after, reference)]
        figures = compare(*sides, seed=plan.seed)
        metrics += _metrics(number, {f"{split}/{n}": i for n, i in figures.items()})
        metrics += _metrics(number, _spreads(tools, ensemble, split, after, reference))
        metrics += _against_others(number, tools, reward, split, sides)
        asked = [tools.prompts[i] for i in dict.fromkeys(s.prompt_id for s in reference)]
        metrics += _metrics(number, against_baselines(tools, split, asked, *sides))
        if split == "monitor":
            _open_against_reference(number, tools, after, reference)
            tools.watcher.say(_line(number, figures))
    if plan.measure.best_of and (drawn := drawn_for_best_of(tools)):
        metrics += best_of_n(number, tools, drawn, _table(reward.score(_features(tools, drawn)), drawn))
    for k in range(number + 1):
        version = REFERENCE if k == 0 else f"policy-r{k}"
        rows = tools.store.samples(purpose="monitor", policy=version)
        score = _table(reward.score(_features(tools, rows)), rows)
        metrics += _metrics(number, {"rescored/proxy": bootstrap_mean(score.mean(1), plan.seed)}, tick=k)
    if tools.crowd is None and number == plan.rounds and plan.rate.pairs:
        with tools.store.begin() as tx:
            tx.add_metrics(metrics)  # whoever looks while people vote sees all figures but theirs
        wait_for_people(number, tools, reference=True)
    return Outcome(metrics + _by_people(number, tools))


def answered(number: int, tools: Tools, split: Purpose, version: str) -> list[Sample]:
    """The version's stored answers to a split; sampled now if they are not there."""
    have = tools.store.samples(purpose=split, policy=version)
    if have:
        return have
    config = tools.plan.measure
    count, n = (
        (config.monitor_prompts, config.monitor_answers)
        if split == "monitor"
        else (config.final_prompts, config.final_answers)
    )
    prompts = tools.split(split)[: count or None]
    tools.engine.load(version)
    tools.watcher.begin(f"round {number}: {version} answers the {split} prompts", len(prompts))
    answers = []
    seed = seed_of(tools.plan.seed, split, version)
    for batch in tools.engine.sample(prompts, n, seed=seed, max_tokens=tools.plan.sampling.max_tokens):
        answers += batch
        tools.watcher.advance(len(batch) // n)
    path = tools.round_dir(number) / f"samples-{split}-{version}.safetensors"
    save_answers(path, answers)
    samples = samples_of(answers, round=number, purpose=split, artefact=str(path.relative_to(tools.root)))
    with tools.store.begin() as tx:
        tx.add_samples(samples)
    return tools.store.samples(purpose=split, policy=version)  # in the store's order, as a later round gets them


def _read(tools: Tools, samples: Sequence[Sample]) -> dict[str, Array]:
    """Features (B, F), logp_ref and kl (B,) of stored answers; computed once, kept beside their artefact."""
    path = readings_path(tools.root, samples)
    try:
        if len((found := load_readings(path))["features"]) == len(samples):
            return found
    except UNREADABLE:  # not there yet, or damaged since
        pass
    layer = middle_layer(tools.loaded.trunk.layers)
    prompts, answers = [tools.prompts[s.prompt_id] for s in samples], load_answers(tools.root, samples)
    reference = tools.reader.read(prompts, answers, layers=(layer,))
    logp_ref = (reference.logp * reference.mask).sum(1).double().cpu().numpy()
    kl = np.zeros(len(samples))
    if samples[0].policy not in (REFERENCE, BASE):
        policy = tools.reader.read(prompts, answers, tools.policy(samples[0].policy).adapter)
        kl = (policy.logp - reference.logp).mul(reference.mask).sum(1).double().cpu().numpy()
    arrays = {"features": features_of(reference, tools.chat, prompts, answers), "logp_ref": logp_ref, "kl": kl}
    write_whole(path, lambda part: _save_npz(part, arrays))
    return load_readings(path)


def readings_path(root: Path, samples: Sequence[Sample]) -> Path:
    """Where the readings of an artefact's samples lie."""
    return (root / samples[0].artefact).with_suffix(".readings.npz")


def load_readings(path: Path) -> dict[str, Array]:
    """Features (B, F), logp_ref and kl (B,) of an artefact's answers, in its row order."""
    with path.open("rb") as raw, np.load(raw) as file:
        return {name: file[name] for name in file.files}


def _save_npz(path: object, arrays: dict[str, Array]) -> None:
    with open(str(path), "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _spreads(
    tools: Tools, ensemble: Ensemble | None, split: Purpose, after: Sequence[Sample], before: Sequence[Sample]
) -> dict[str, Interval]:
    """How unsure the reward is of the policy's and the untouched model's answers; nothing without an ensemble."""
    if ensemble is None or len(ensemble.bias) < 2:
        return {}
    sides = {f"{split}/spread": after, f"{split}/spread_reference": before}
    spread = {name: _table(ensemble.spread(_features(tools, s)), s).mean(1) for name, s in sides.items()}
    return {name: bootstrap_mean(values, tools.plan.seed) for name, values in spread.items()}


def _features(tools: Tools, samples: Sequence[Sample]) -> Array:
    return _read(tools, samples)["features"]


def _side(tools: Tools, reward: Reward, samples: Sequence[Sample]) -> Side:
    return side(_read(tools, samples), samples, reward, tools.utility, tools.prompts)


def side(
    read: Mapping[str, Array],
    samples: Sequence[Sample],
    reward: Reward,
    utility_of: Utility | None,
    prompts: Mapping[str, Prompt],
) -> Side:
    """One model's answers as (P, G) tables, from their stored readings (see `readings_path`)."""
    texts: dict[str, list[str]] = {}
    for s in samples:
        texts.setdefault(s.prompt_id, []).append(s.text)
    utility, attributes = None, {}
    if utility_of is not None:
        judged = [utility_of.judge(prompts[s.prompt_id], s.text, s.ended) for s in samples]
        utility = _table(np.array([j.value for j in judged]), samples)
        attributes = {n: _table(np.array([j.attributes[n] for j in judged]), samples) for n in utility_of.names}
    return Side(
        utility, attributes, _table(reward.score(read["features"]), samples),
        _table(np.array([float(s.length) for s in samples]), samples), _table(read["logp_ref"], samples),
        _table(read["kl"], samples), list(texts.values()),
    )  # fmt: skip


def _table(values: Array, samples: Sequence[Sample]) -> Array:
    """(P, G) from (B,): a prompt's answers lie side by side."""
    return values.reshape(len({s.prompt_id for s in samples}), -1)


def _open_against_reference(number: int, tools: Tools, after: Sequence[Sample], before: Sequence[Sample]) -> None:
    """Open the held-out pairs of policy against reference, and ask machine raters."""
    pairs = reference_pairs(
        after, before, round=number, count=len(after) // 2, seed=tools.plan.seed, double_share=tools.double_share
    )
    with tools.store.begin() as tx:
        tx.add_pairs(pairs)
    ask_machines(tools, pairs, {s.id: s for s in [*after, *before]})


def _by_people(number: int, tools: Tools) -> list[Metric]:
    """What raters say by now of this round, and of those before: people's votes may come long after a round's end."""
    rounds = range(1 if tools.crowd is None else number, number + 1)
    return [m for k in rounds if (m := win_rate_by_people(tools.store, k, tools.plan.seed)) is not None]


def _against_others(number: int, tools: Tools, reward: Reward, split: Purpose, sides: Sequence[Side]) -> list[Metric]:
    """The policy and the untouched model against every other model of the run, e.g. "final/against/base/win_rate"."""
    out: dict[str, Interval] = {}
    for version in (BASE,):
        samples = tools.store.samples(purpose=split, policy=version)
        if not samples:
            continue
        other = _side(tools, reward, samples)
        for mine, suffix in zip(sides, ("", "_reference"), strict=True):
            figures = compare(mine, other, seed=tools.plan.seed)
            for name in ("win_rate", "proxy_win_rate", "utility_reference", "length_reference"):
                if name in figures:
                    whose = name.removesuffix("_reference") if name.endswith("_reference") else name + suffix
                    out[f"{split}/against/{version}/{whose}"] = figures[name]
    return _metrics(number, out)


def _metrics(number: int, figures: dict[str, Interval], tick: int = 0) -> list[Metric]:
    return [
        Metric(round=number, step="measure", tick=tick, name=n, value=i.value, low=i.low, high=i.high)
        for n, i in figures.items()
        if math.isfinite(i.value)
    ]


def _line(number: int, figures: dict[str, Interval]) -> str:
    """The one line a round leaves on the screen."""
    proxy, kl = figures["proxy"].value - figures["proxy_reference"].value, figures["kl"].value
    words = f"round {number}: proxy {proxy:+.2f} sd, KL {kl:.1f} nats, {figures['length'].value:.0f} tokens"
    if "win_rate" in figures:
        won, gain = figures["win_rate"], figures["utility"].value - figures["utility_reference"].value
        words += f"; true utility {gain:+.2f}, wins {won.value:.0%} [{won.low:.0%}, {won.high:.0%}] of its duels"
    return words + " (monitor prompts)"
