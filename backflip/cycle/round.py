"""The map: one round is sample, rate, fit, optimise, measure. Read this file first."""

import time
from collections.abc import Callable

from backflip.cycle.fit import fit
from backflip.cycle.measure import measure
from backflip.cycle.optimise import optimise
from backflip.cycle.sample import rate, sample
from backflip.cycle.tools import Outcome, Tools, policy_before

STEPS: dict[str, Callable[[int, Tools], Outcome]] = {
    "sample": sample,  # the policy answers prompts; pairs open and machine raters vote as answers arrive
    "rate": rate,  # every pair is judged, or the run pauses for people
    "fit": fit,  # votes up to a watermark become a reward
    "optimise": optimise,  # PPO, or what the plan names, on a KL leash; one checkpoint a step
    "measure": measure,  # proxy, true utility and held-out votes against the untouched model
}


def run_round(number: int, tools: Tools) -> None:
    """Carry round `number` to its end from wherever it stopped.

    Each step writes its artefacts first and its rows after them, in short transactions; killed anywhere,
    the same call carries on. Raises: Paused while a step waits for people.
    """
    store = tools.store
    with store.begin() as tx:
        tx.start_round(number, policy_before(number), time.time())
    done = store.steps_done(number)
    for name, step in STEPS.items():
        if name in done:
            continue
        began = time.monotonic()
        outcome = step(number, tools)  # minutes to hours; holds no lock
        with store.begin() as tx:  # milliseconds; all or nothing
            for model in outcome.models:
                tx.add_model(model)
            tx.add_metrics(outcome.metrics)
            tx.mark_done(number, name, time.monotonic() - began)
        tools.tracker.log(outcome.metrics)
