"""The step `fit`: votes up to a committed watermark become the round's reward."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.protocols import Scorer
from backflip.core.records import Metric, ModelVersion, Sample
from backflip.cycle.artefacts import UNREADABLE, kept, load_answers, load_array, save_array, write_text, write_whole
from backflip.cycle.folder import REFERENCE
from backflip.cycle.tools import Outcome, Tools
from backflip.cycle.votes import CHAT, ROUND_FEATURES, Features, Table, features_file, kept_apart, votes_table
from backflip.rewards.conservative import Paid, Scored, caution
from backflip.rewards.ensemble import Ensemble, fit_ensemble, load_ensemble, save_ensemble
from backflip.rewards.fit import Fitted, Reward, emphasis, fit_votes, require_difference, require_preference
from backflip.rewards.model import RewardModel, features_of, load_reward, save_reward
from backflip.sampling.score import middle_layer
from backflip.stats.agreement import pair_agreement
from backflip.stats.bootstrap import Interval
from backflip.stats.calibration import accuracy, calibration_error, log_loss, reliability_bins

Array = NDArray[np.float64]
CHECK = "check"
"""Folder of the second reward, on votes kept apart, within that of the first."""


class FromVotes(NamedTuple):
    """What a round's fit made of its votes."""

    reward: Reward
    ensemble: Ensemble | None
    """None where it was fitted before there were any."""
    check: Reward | None
    """On the votes that were kept apart; None where there were none, or nothing could be learned from them."""


def fit(number: int, tools: Tools) -> Outcome:
    """Fit the reward on every vote of the "fit" stream up to the watermark; judge it on the random arm.

    Raises: DataError when nobody has voted, or all answers are worth the same.
    """
    store = tools.store
    require_import(tools)
    if store.watermark(number) is None and not store.thumbs():  # a watermark is never moved
        _require_preference(tools)
    with store.begin() as tx:
        mark = tx.set_watermark(number)
    tools.watcher.begin(f"round {number}: fit the reward", number + 1)
    table = _features(number, tools)
    tools.watcher.advance(number, f"{len(store.votes(upto=mark))} votes")
    seen = _seen(tools, table, mark)
    (reward, _, check), path = _fit(number, tools, table, seen)
    tools.watcher.advance()
    seen = _parted(tools, seen)[0].decided()
    held_out = votes_table(store, table, store.votes(stream="random", upto=mark)).decided()
    metrics = [
        Metric(round=number, step="fit", tick=0, name=n, value=i.value, low=i.low, high=i.high)
        for n, i in (_judge(tools, reward, seen, held_out, mark) | _judged_check(tools, check, held_out)).items()
    ]
    counted = {"votes/count": float(len(store.votes(upto=mark)))}
    if held_out.feedback:
        counted["reward/heldout_calibration_error"] = _reliability(number, tools, reward, held_out)
    metrics += [Metric(round=number, step="fit", tick=0, name=n, value=v) for n, v in counted.items()]
    version = ModelVersion(
        id=f"reward-r{number}", kind="reward", round=number, parent=REFERENCE, path=str(path.relative_to(tools.root))
    )
    heldout = next((m for m in metrics if m.name == "reward/heldout_accuracy"), None)
    tools.watcher.say(
        f"round {number}: reward fitted on {len(seen.feedback)} votes"
        + (f"; predicts {heldout.value:.0%} of {len(held_out.feedback)} held-out ones" if heldout else "")
    )
    return Outcome(metrics, [version])


def require_import(tools: Tools) -> None:
    """Refuse a round that asks for no votes and has none to fit. Raises: DataError."""
    said = (v.choice in ("a", "b") for v in tools.store.votes(stream="fit"))
    if tools.plan.rate.pairs or any(said) or tools.store.thumbs():
        return
    raise DataError(
        "The plan asks for no votes (rate.pairs = 0), and none were imported that a reward can be fitted on.\n"
        "Ties, and votes that are held out, say too little for a fit.\n"
        f"Bring preferences with: backflip import FILE --dir {tools.root}"
    )


def _require_preference(tools: Tools) -> None:
    """Refuse votes that no reward can be fitted on. Raises: DataError."""
    votes, prompt = tools.store.votes(stream="fit"), {p.id: p.prompt_id for p in tools.store.pairs(stream="fit")}
    require_preference([v.verdict or v.choice for v in votes])
    left = [v.verdict for v in votes if not kept_apart(tools.plan, prompt[v.pair_id])]
    if not {"a", "b"} & set(left):
        raise DataError(
            f"No vote that prefers an answer is left for the reward: fit.apart = {tools.plan.fit.apart:g} keeps "
            f"{len(votes) - len(left)} of {len(votes)} apart.\nSo few votes do not make two rewards.\n"
            "Rate more pairs and start again with the same command, or start another run with a smaller fit.apart."
        )


def _seen(tools: Tools, table: Features, mark: int | None) -> Table:
    """What a fit reads: the votes of its stream and the thumbs up to a watermark."""
    store = tools.store
    return votes_table(store, table, store.votes(stream="fit", upto=mark), store.thumbs(upto=mark))


def seen_by(number: int, tools: Tools) -> Table:
    """What the reward of round `number` was fitted on."""
    return _parted(tools, _seen(tools, _features(number, tools), tools.store.watermark(number)))[0]


def _parted(tools: Tools, seen: Table) -> tuple[Table, Table]:
    """The votes for the reward, and those that are kept apart for its check."""
    apart = {p for p in set(seen.prompt) if kept_apart(tools.plan, p)}
    return seen.only(lambda p: p not in apart), seen.only(lambda p: p in apart)


def learn(tools: Tools, table: Features, seen: Table) -> Fitted:
    """The reward and the raters that the plan's fit makes of these votes."""
    reference = table[1][1]
    return fit_votes(
        seen.features, seen.feedback, seen.prompt, reference, tools.plan.fit, seed=tools.plan.seed,
        emphasis=emphasis(reference.shape[1]), thumbs=seen.thumbs,
    )  # fmt: skip


def _fit(number: int, tools: Tools, table: Features, seen: Table) -> tuple[FromVotes, Path]:
    """Fit the round's reward, its ensemble and its check and save them; returns them and where they lie."""
    ours, apart = _parted(tools, seen)
    fitted = learn(tools, table, ours)
    require_difference(fitted.reward, table[1][1])
    ensemble = fit_ensemble(fitted, table[1][1], tools.plan.fit, seed=tools.plan.seed)
    check = learn(tools, table, apart).reward if _says(apart) else None
    if tools.plan.fit.apart and check is None:
        tools.watcher.say(f"round {number}: the votes kept apart prefer no answer, so that the score goes unchecked")
    path = tools.round_dir(number) / "reward"

    def save(part: Path) -> None:
        save_reward(fitted.reward, part)
        save_ensemble(ensemble, part)
        if check is not None:
            save_reward(check, part / CHECK)

    write_whole(path, save)
    return FromVotes(fitted.reward, ensemble, check), path


def _says(seen: Table) -> bool:
    """Whether a reward can be fitted on these votes."""
    return bool(seen.thumbs) or any(f.choice in ("a", "b") for f in seen.feedback)


def learned_of_round(number: int, tools: Tools) -> FromVotes:
    """What round `number` fitted; fitted anew on the round's votes when a file is missing or damaged."""
    folder = tools.round_dir(number) / "reward"
    with suppress(*UNREADABLE):
        return _load(folder)
    store, mark = tools.store, tools.store.watermark(number)
    counted = [m.value for m in store.metrics(round=number, step="fit", name="votes/count")]
    which = "the same votes" if counted == [len(store.votes(upto=mark))] else "the votes that are left"
    tools.watcher.say(f"round {number}: its reward is missing or damaged, and is fitted anew on {which}")
    table = _features(number, tools)
    _fit(number, tools, table, _seen(tools, table, mark))
    return _load(folder)


def _load(folder: Path) -> FromVotes:
    check = load_reward(folder / CHECK) if (folder / CHECK).exists() else None
    return FromVotes(load_reward(folder), load_ensemble(folder), check)


def scorer_of_round(number: int, tools: Tools) -> RewardModel:
    """What round `number` fitted, ready to score answers."""
    reward, ensemble, check = learned_of_round(number, tools)
    return RewardModel(reward, tools.reader, ensemble, check)


def paid_by(number: int, tools: Tools, model: RewardModel) -> Scorer:
    """What the climb of round `number` is paid by: its reward, or what the plan's caution makes of it.

    Raises: DataError for a reward without members where the plan compares them.
    """
    if tools.plan.fit.conservative == "mean" and not tools.plan.fit.length_free:
        return model
    if tools.plan.fit.conservative != "mean" and model.ensemble is None:
        raise DataError(
            f'fit.conservative = "{tools.plan.fit.conservative}" compares the reward\'s members, and round {number} '
            "has none.\nIts reward was fitted by a Backflip that made none.\n"
            'Set fit.conservative to "mean", or start another run with --dir.'
        )

    def scored(round: int) -> Scored:
        features = features_of_round(tools, round)[1]
        length = np.array([float(s.length) for s in tools.store.samples(round=round, purpose="rate")])
        ensemble = model.ensemble
        return Scored(model.reward.score(features)[None] if ensemble is None else ensemble.score(features), length)

    return Paid(model, caution(tools.plan.fit, scored(number), scored(1)))


def _features(number: int, tools: Tools) -> Features:
    """Features of every answer that a fit of round `number` may read votes on."""
    apart = {0: features_by_file(tools, "rate"), CHAT: features_by_file(tools, "chat")}
    return apart | {r: features_of_round(tools, r) for r in range(1, number + 1)}


def features_of_round(tools: Tools, number: int) -> tuple[list[str], Array]:
    """(sample ids, features (B, F)) of the answers a round sampled for rating; computed once, then read back."""
    samples = tools.store.samples(round=number, purpose="rate")
    path = tools.round_dir(number) / ROUND_FEATURES
    return [s.id for s in samples], _kept_features(tools, path, samples)


def features_by_file(tools: Tools, purpose: Literal["rate", "chat"]) -> tuple[list[str], Array]:
    """(sample ids, features (B, F)) of imported answers ("rate") or those of the chat; computed once a file."""
    artefacts: dict[str, list[Sample]] = {}
    for s in tools.store.samples(round=0 if purpose == "rate" else None, purpose=purpose):
        artefacts.setdefault(s.artefact, []).append(s)
    ids: list[str] = []
    rows: list[Array] = []
    for name, samples in artefacts.items():
        ids += [s.id for s in samples]
        rows += list(_kept_features(tools, features_file(tools.root / name, purpose), samples))
    return ids, np.array(rows)


def _kept_features(tools: Tools, path: Path, samples: Sequence[Sample]) -> Array:
    """Features of samples as they lie in `path`, computed when they do not, or are damaged."""
    found = kept(path, lambda: load_array(path, "features"), len(samples))
    if found is None:
        save_array(path, "features", compute_features(tools, samples))
        found = load_array(path, "features")
    return found


def compute_features(tools: Tools, samples: Sequence[Sample]) -> Array:
    """(B, F) features of stored samples under the untouched model."""
    layer = middle_layer(tools.loaded.trunk.layers)
    answers = load_answers(tools.root, samples)
    known = tools.prompts
    if any(s.prompt_id not in known for s in samples):  # asked in the chat since the run was opened
        known = {p.id: p for p in tools.store.prompts()}
    prompts = [known[s.prompt_id] for s in samples]
    return features_of(tools.reader.read(prompts, answers, layers=(layer,)), tools.chat, prompts, answers)


def gaps(reward: Reward, table: Table) -> Array:
    """(P,) predicted reward of a minus that of b, in units of the normalised reward."""
    return table.apart(reward.score(table.features))


def _reliability(number: int, tools: Tools, reward: Reward, held_out: Table) -> float:
    """Expected calibration error on held-out votes; the bins behind it go to the round's `reliability.json`."""
    votes = gaps(reward, held_out) * reward.slope, [f.choice for f in held_out.feedback], reward.tie
    table = {"bins": [b._asdict() for b in reliability_bins(*votes)], "slope": reward.slope, "tie": reward.tie}
    write_text(tools.round_dir(number) / "reliability.json", json.dumps(table))
    return calibration_error(*votes)


def _judged_check(tools: Tools, check: Reward | None, held_out: Table) -> dict[str, Interval]:
    """How often the check agrees with held-out votes."""
    unit = [held_out.prompt[f.a] for f in held_out.feedback]
    if check is None or len(set(unit)) < 2:
        return {}
    choice = [f.choice for f in held_out.feedback]
    return {"check/heldout_accuracy": accuracy(gaps(check, held_out), choice, tools.plan.seed, unit=unit)}


def _judge(tools: Tools, reward: Reward, seen: Table, held_out: Table, mark: int) -> dict[str, Interval]:
    """Accuracy on fitted and held-out votes, log loss there, and how often two raters agree."""
    out: dict[str, Interval] = {}
    seed = tools.plan.seed
    for name, table in (("train", seen), ("heldout", held_out)):
        decided = table.feedback
        unit = [table.prompt[f.a] for f in decided]
        if len(set(unit)) < 2:
            continue
        choice = [f.choice for f in decided]
        out[f"reward/{name}_accuracy"] = accuracy(gaps(reward, table), choice, seed, unit=unit)
        if name == "heldout":
            logits = gaps(reward, table) * reward.slope
            out["reward/heldout_logloss"] = log_loss(logits, choice, seed, max(reward.tie, 1e-3), unit=unit)
    votes = sorted((v for v in tools.store.votes(upto=mark) if v.verdict is not None), key=lambda v: v.key)
    judged = Counter(v.pair_id for v in votes)
    if sum(n > 1 for n in judged.values()) >= 2:
        by = [v.rater_id for v in votes]
        out["raters/agreement"] = pair_agreement(
            [v.pair_id for v in votes], by, [v.verdict or v.choice for v in votes], seed
        ).share
    return out
