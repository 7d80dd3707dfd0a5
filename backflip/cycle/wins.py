"""People's win rate: counted from the votes in force whenever it is asked for, since votes come long after a round."""

from typing import Final

import numpy as np

from backflip.core.records import Metric
from backflip.cycle.folder import LOOKS, REFERENCE
from backflip.stats.bootstrap import bootstrap_mean
from backflip.store import Store

WIN_RATE: Final = "people/win_rate"


def win_rate_by_people(store: Store, number: int, seed: int) -> Metric | None:
    """The policy's share of what was judged of round `number`'s pairs against the untouched model.

    Averaged over prompts, with a bootstrap interval; None while answers to fewer than two prompts were judged.
    """
    after = store.samples(purpose="monitor", policy=f"policy-r{number}")
    before = store.samples(purpose="monitor", policy=REFERENCE)
    policy = {s.id for s in after}
    known = {p.id: p for p in store.pairs(round=number, stream="reference")}
    won: dict[str, list[float]] = {}
    said = {(s.prompt_id, s.index): s.text.strip() for s in before} if known else {}
    for mine in after:
        if said.get((mine.prompt_id, mine.index)) == mine.text.strip():  # a tie that nobody need judge
            won.setdefault(mine.prompt_id, []).append(0.5)
    for v in store.votes(round=number, stream="reference"):
        pair = known[v.pair_id]
        if v.verdict is None or pair.policy.startswith(LOOKS):  # the latter was judged amid the climb
            continue
        share = 0.5 if v.verdict == "tie" else float((v.verdict == "a") == (pair.sample_a in policy))
        won.setdefault(pair.prompt_id, []).append(share)
    if len(won) < 2:
        return None
    rate = bootstrap_mean([float(np.mean(w)) for w in won.values()], seed)
    return Metric(round=number, step="measure", tick=0, name=WIN_RATE, value=rate.value, low=rate.low, high=rate.high)


def metrics_now(store: Store) -> list[Metric]:
    """Every measurement, with people's win rate as the votes in force have it now: also of rounds long measured."""
    seed = int(store.note("seed") or 0)
    judged = {p.round for p in store.pairs(stream="reference")}
    kept = [m for m in store.metrics() if m.name != WIN_RATE or m.round not in judged]
    counted = (win_rate_by_people(store, number, seed) for number in sorted(judged))
    return sorted([*kept, *(m for m in counted if m is not None)], key=lambda m: (m.round, m.step, m.tick, m.name))
