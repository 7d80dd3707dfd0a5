"""The step `optimise`: drive the climb, one checkpoint a step, until the round's steps are done.

A step whose numbers are not finite is refused: its answers are saved, and the state before it is loaded anew, so that
a climb that goes on without it is the same whether or not it was killed there.
"""

from itertools import count
from pathlib import Path

import numpy as np

from backflip.core.records import Metric, ModelVersion
from backflip.cycle.artefacts import load_answers, remove, write_whole
from backflip.cycle.checkpoints import checkpoint_of, newest_checkpoint, save_checkpoint
from backflip.cycle.fit import paid_by, scorer_of_round
from backflip.cycle.guard import Guard
from backflip.cycle.overview import REFUSED
from backflip.cycle.refused import save_refused, stopped
from backflip.cycle.shown import save_shown
from backflip.cycle.tools import Outcome, Tools, policy_before
from backflip.cycle.votes import kept_apart, vote_weights
from backflip.cycle.watch import watched
from backflip.measure.soundness import require_sound_start
from backflip.policies import ppo, rollout
from backflip.policies.foresight import at_a_time, keep_within_memory, longest_imaginable, need_of_climb
from backflip.policies.methods import METHODS
from backflip.policies.not_finite import NotFinite
from backflip.policies.state import PolicyState, fresh_state, save_state
from backflip.stats.calibration import OUTCOME

WARM_UP = 96
"""Answers of the round on which the critic learns a refitted reward's scale before the first step."""
MOST_REFUSED = 3
"""Steps in a row that may be refused before a climb stops whatever the plan says."""


def optimise(number: int, tools: Tools) -> Outcome:
    """Climb the round's reward; the finished policy is `policy-r{number}`."""
    final = tools.round_dir(number) / "policy"
    if not final.exists():
        _climb(number, tools, final)
    remove(tools.round_dir(number) / "checkpoints")
    path = str(final.relative_to(tools.root))
    before = policy_before(number)
    return Outcome(models=[ModelVersion(id=f"policy-r{number}", kind="policy", round=number, parent=before, path=path)])


def _climb(number: int, tools: Tools, final: Path) -> None:
    """Take the round's remaining steps and save the policy as `final`."""
    plan = tools.plan
    scorer = scorer_of_round(number, tools)
    method = METHODS[plan.optimise.by]
    votes = preferences(number, tools) if method.votes else []
    paid = paid_by(number, tools, scorer)
    work = rollout.Tools(tools.engine, tools.reader, paid, tools.split("train"), votes, policy_before(number))
    first = _steps_before(number, tools)
    last = first + plan.ppo.steps
    folder = tools.round_dir(number) / "checkpoints"
    guard = Guard(number, tools, scorer, first)
    state = tools.state = _start(number, tools, work, folder)
    guard.resume(state.step - first)
    _fit_into_memory(tools, state)
    tools.watcher.begin(f"round {number}: optimise", plan.ppo.steps)
    tools.watcher.advance(state.step - first)
    rules = {"seed": plan.seed, "max_tokens": plan.sampling.max_tokens, "until": last}

    def finish(state: PolicyState, figures: dict[str, float], note: str) -> None:
        tick = state.step - first
        rows = [Metric(round=number, step="optimise", tick=tick, name=n, value=v) for n, v in figures.items()]
        rows += guard.late()
        with tools.store.begin() as tx:  # first the figures, then the checkpoint: a step cut short is done again
            tx.add_metrics(rows)
        tools.tracker.log(rows)
        save_checkpoint(state, folder, guard.kept)
        tools.watcher.advance(1, note)

    while state.step < last and not guard.rang():
        try:
            for step in method.climb(state, work, plan.ppo, plan.optimise, **rules):
                if step.state.step == 1:
                    require_sound_start(step.metrics, tools.loaded.trunk.dtype)
                figures = step.metrics | _true_utility(tools, step) | watched(step, scorer, tools.prompts)
                figures |= guard.look(state, figures["objective/kl"])
                save_shown(tools.root, number, state.step - first, step)
                finish(state, figures, _note(figures))
                if guard.rang():
                    break
        except NotFinite as e:
            _refuse(number, state.step, state.step - first, tools, e)
            state = tools.state = _start(number, tools, work, folder)
            state.step += 1
            finish(state, {REFUSED: 1.0}, "refused")
    guard.end(state.step - first)
    with tools.store.begin() as tx:
        tx.add_metrics(guard.late())
    if guard.rang():
        state = _back(guard, state, tools, folder)
    write_whole(final, lambda part: save_state(state, part))


def _back(guard: Guard, state: PolicyState, tools: Tools, folder: Path) -> PolicyState:
    """The state that the alarm goes back to; its step stays, for the steps were taken."""
    assert guard.ring is not None
    tools.watcher.say(guard.told())
    tick = 0 if guard.ring.best is None else guard.ring.best.tick
    found = checkpoint_of(guard.first + tick, folder, tools.loaded.trunk.device)
    found.step = state.step
    tools.state = found
    return found


def _fit_into_memory(tools: Tools, state: PolicyState) -> None:
    """Work with fewer answers at a time where the free memory would not do for the longest that may come."""
    plan, reader, prompts = tools.plan, tools.reader, tools.split("train")
    room, rollouts = plan.sampling.max_tokens, min(plan.ppo.prompts, len(prompts)) * plan.ppo.answers
    shown = longest_imaginable(tools.chat, prompts, room)
    need = need_of_climb(reader, state, *shown, rollouts=rollouts, room=room)
    keep_within_memory(reader, need, at_a_time(plan.ppo, rollouts))


def _refuse(number: int, place: int, taken: int, tools: Tools, error: NotFinite) -> None:
    """Save the answers of the step that failed, the one after `taken` of this round, and say that it is left out.

    Raises: BackflipError where the plan stops then, or too many steps before it were refused too.
    """
    file = save_refused(tools.round_dir(number) / "refused" / f"step-{place:05d}.jsonl", error)
    refused = {m.tick for m in tools.store.metrics(round=number, step="optimise", name=REFUSED)}
    row = next(n for n in count() if taken - n not in refused)
    if tools.plan.optimise.when_not_finite == "stop" or row >= MOST_REFUSED:
        raise stopped(error, file, tools.root, refused_before=row) from error
    tools.watcher.say(f"{error.fact}: the step is left out, its answers are in {file}")


def _steps_before(number: int, tools: Tools) -> int:
    """Steps that the earlier rounds took or left out; their plans may differ from this round's."""
    taken = (tools.store.metrics(round=r, step="optimise") for r in range(1, number))
    return sum(max((m.tick for m in rows), default=0) for rows in taken)


def _start(number: int, tools: Tools, work: rollout.Tools, folder: Path) -> PolicyState:
    """The newest checkpoint of this round; else the last round's policy (or a fresh one) with a warmed-up critic."""
    plan, trunk = tools.plan, tools.loaded.trunk
    saved = newest_checkpoint(folder, trunk.device)
    if saved is not None:
        return saved
    state = tools.policy(policy_before(number)) if number > 1 else fresh_state(trunk, plan.ppo, plan.seed)
    state.optimiser.param_groups[0]["lr"] = plan.ppo.learning_rate  # the plan may have been edited between rounds
    state.critic_optimiser.param_groups[0]["lr"] = plan.ppo.critic_learning_rate
    tools.state = state
    if METHODS[plan.optimise.by].critic:
        _warm_up(number, tools, work, state)
    save_checkpoint(state, folder)
    return state


def _warm_up(number: int, tools: Tools, work: rollout.Tools, state: PolicyState) -> None:
    """Let the critic learn the refitted reward's scale from the round's answers."""
    rated = tools.store.samples(round=number, purpose="rate")
    samples = [s for s in rated if tools.prompts[s.prompt_id].split == "train"][:WARM_UP]
    if samples:
        tools.watcher.begin(f"round {number}: warm up the critic", 1)
        ppo.warm_up(
            state,
            work,
            tools.plan.ppo,
            [tools.prompts[s.prompt_id] for s in samples],
            load_answers(tools.root, samples),
        )


def preferences(number: int, tools: Tools) -> list[rollout.Preference]:
    """The votes that the round's reward was fitted on, with the answers they are about; a tie is half a win.

    Raises: RuntimeError before the round's fit.
    """
    mark = tools.store.watermark(number)
    if mark is None:
        raise RuntimeError("the round's votes are counted by its fit, which has not begun")
    pairs = {p.id: p for p in tools.store.pairs()}
    weight = vote_weights(pairs.values())
    votes = [v for v in tools.store.votes(stream="fit", upto=mark) if v.verdict is not None]
    votes.sort(key=lambda v: v.key)  # not by arrival: a resumed run may have cast them in another order
    ids = sorted({i for v in votes for i in (pairs[v.pair_id].sample_a, pairs[v.pair_id].sample_b)})
    samples = tools.store.samples_by_id(ids)
    answers = dict(zip(ids, load_answers(tools.root, [samples[i] for i in ids]), strict=True))
    prompts = {p.id: p for p in tools.store.prompts()} | tools.prompts  # some may have been asked since in the chat
    return [
        rollout.Preference(
            prompts[pair.prompt_id],
            answers[pair.sample_a],
            answers[pair.sample_b],
            OUTCOME[v.verdict],
            weight[pair.id],
        )
        for v in votes
        if v.verdict is not None
        for pair in [pairs[v.pair_id]]
        if not kept_apart(tools.plan, pair.prompt_id)
    ]


def _true_utility(tools: Tools, step: rollout.Step) -> dict[str, float]:
    """Means of the true utility and its attributes over the step's answers; only watched, never climbed."""
    if tools.utility is None:
        return {}
    judged = [tools.utility.judge(tools.prompts[a.prompt_id], a.text, a.ended) for a in step.answers]
    out = {f"gold/{n}": float(np.mean([j.attributes[n] for j in judged])) for n in tools.utility.names}
    return out | {"gold/utility": float(np.mean([j.value for j in judged]))}


def _note(figures: dict[str, float]) -> str:
    gold = f"  true {figures['gold/utility']:.2f}" if "gold/utility" in figures else ""
    return f"proxy {figures['objective/scores']:+.2f}{gold}  KL {figures['objective/kl']:.1f}"
