"""The alarm amid a climb: looks every few steps, kept as figures of the step, and the way back when it rings."""

import json
import math

import numpy as np

from backflip.core.errors import BackflipError, DataError
from backflip.core.records import Answer, Judged, Pair, Prompt
from backflip.core.rng import generator, seed_of
from backflip.cycle.artefacts import write_text
from backflip.cycle.folder import REFERENCE, alarm_path
from backflip.cycle.tools import Tools
from backflip.measure.alarm import (
    BACK_TO,
    DISTANCE,
    EVIDENCE,
    JUDGED,
    WINS,
    Exhibit,
    Ring,
    Seen,
    exhibits,
    gold_function,
    listen,
    paragraph,
    valued,
    win,
)
from backflip.measure.warnings import FORETOLD
from backflip.policies.state import PolicyState
from backflip.rewards.model import RewardModel
from backflip.stats.calibration import OUTCOME
from backflip.stats.falling import Look

FEWEST = 4
"""Monitor prompts below which an alarm is refused: a look on fewer says nothing."""


class Guard:
    """Looks at a round's climb when the plan names gold; `ring` is set once gold has fallen."""

    def __init__(self, number: int, tools: Tools, scorer: RewardModel, first: int) -> None:
        """Take up the looks that were taken before a stop. Raises: BackflipError for gold that cannot judge."""
        self.number, self.tools, self.scorer, self.first = number, tools, scorer, first
        self.plan = tools.plan.alarm
        self.seen: list[Seen] = []
        self.ring: Ring | None = None
        self._exhibits: list[Exhibit] = []
        if not self.plan.gold:
            return
        _require_gold(tools)
        self._function = gold_function(self.plan.gold) if ":" in self.plan.gold else None

    @property
    def kept(self) -> set[int]:
        """Steps whose checkpoints the climb may go back to."""
        return {self.first, *(self.first + s.tick for s in self.seen)} if self.plan.gold else set()

    def rang(self) -> bool:
        """Whether gold has fallen."""
        return self.ring is not None

    def resume(self, taken: int) -> None:
        """Take up the looks of the round's first `taken` steps, and whether the last one rang."""
        if not self.plan.gold:
            return
        rows = self.tools.store.metrics(round=self.number, step="optimise")
        at: dict[str, dict[int, float]] = {WINS: {}, JUDGED: {}, DISTANCE: {}}
        for m in rows:
            if m.name in at and m.tick <= taken:
                at[m.name][m.tick] = m.value
        self.seen = [
            Seen(t, Look(math.sqrt(max(at[DISTANCE][t], 0.0)), at[WINS][t], int(at[JUDGED][t])))
            for t in sorted(at[WINS])
        ]
        self.ring = listen(self.seen, self.plan.rate)

    def look(self, state: PolicyState, kl: float) -> dict[str, float]:
        """The step's look, as figures; none where no look is due. `kl` is the step's, in nats."""
        tick = state.step - self.first
        spent = sum(s.look.judged for s in self.seen)
        if not self.plan.gold or tick % self.plan.every or spent + self.plan.votes > self.plan.labels:
            return {}
        prompts, ours, theirs = self._answers(state)
        wins = [self._judge(p, a, b, tick) for p, a, b in zip(prompts, ours, theirs, strict=True)]
        self.seen.append(Seen(tick, Look(math.sqrt(max(kl, 0.0)), sum(wins), len(wins))))
        self.ring = listen(self.seen, self.plan.rate)
        foretold = float(self.scorer.foretold(prompts, ours, theirs).sum())
        out = {WINS: sum(wins), JUDGED: float(len(wins)), DISTANCE: kl, FORETOLD: foretold}
        if self.ring is not None:
            gain = self.scorer.score(prompts, ours) - self.scorer.score(prompts, theirs)
            self._exhibits = exhibits(prompts, ours, theirs, gain.tolist(), wins)
            self._write()
            out |= {EVIDENCE: self.ring.evidence.log_e, BACK_TO: float(self.ring.best.tick if self.ring.best else 0)}
        return out

    def told(self) -> str:
        """The paragraph about an alarm that rang."""
        assert self.ring is not None
        return paragraph(self.ring, self.seen, self.tools.plan.ppo.kl_target)

    def _write(self) -> None:
        """`alarm.json` in the round's folder: the paragraph and the answers that show it."""
        shown = {"told": self.told(), "samples": [e._asdict() for e in self._exhibits]}
        write_text(alarm_path(self.tools.root, self.number), json.dumps(shown, ensure_ascii=False, indent=1))

    def _answers(self, state: PolicyState) -> tuple[list[Prompt], list[Answer], list[Answer]]:
        """Monitor prompts drawn by lot, answered anew by the policy and by the untouched model."""
        tools, pool = self.tools, self.tools.split("monitor")
        seed = seed_of(tools.plan.seed, "alarm", state.step)
        order = generator(seed, "prompts").permutation(len(pool))[: self.plan.votes]
        prompts = [pool[i] for i in order]
        sides = []
        for version in (state.version, REFERENCE):
            tools.engine.load(version)
            drawn = tools.engine.sample(
                prompts, 1, seed=seed_of(seed, version), max_tokens=tools.plan.sampling.max_tokens
            )
            by_prompt = {a.prompt_id: a for batch in drawn for a in batch}
            sides.append([by_prompt[p.id] for p in prompts])
        return prompts, sides[0], sides[1]

    def _judge(self, prompt: Prompt, ours: Answer, theirs: Answer, tick: int) -> float:
        """1 where the policy's answer is better, 0 where it is worse."""
        if self._function is not None:
            name, judge = self.plan.gold, self._function
            return win(*(valued(name, judge, prompt.text, a.text) for a in (ours, theirs)))
        a, b = (_true(self.tools, prompt, x) for x in (ours, theirs))
        if self.plan.gold == "utility":
            return win(a.value, b.value)
        assert self.tools.crowd is not None
        pair = Pair(
            id=f"r{self.number}/alarm/{tick}/{prompt.id}", round=self.number, stream="reference", prompt_id=prompt.id,
            sample_a="policy", sample_b=REFERENCE, policy=ours.policy,
        )  # fmt: skip
        return float(np.mean([OUTCOME[v.choice] for v in self.tools.crowd.votes(pair, a, b, at=0.0)]))


def _true(tools: Tools, prompt: Prompt, answer: Answer) -> Judged:
    assert tools.utility is not None
    return tools.utility.judge(prompt, answer.text, answer.ended)


def _require_gold(tools: Tools) -> None:
    """Raises: BackflipError where the plan's gold cannot judge this run; DataError for too few prompts."""
    gold, count = tools.plan.alarm.gold, len(tools.split("monitor"))
    if count < FEWEST:
        raise DataError(
            f"The alarm has {count} monitor prompts to look at, and needs at least {FEWEST}.\n"
            "With fewer, no look says anything about the policy.\n"
            'Add prompts with "split": "monitor", or take alarm.gold out of the plan.'
        )
    if gold == "people" and (tools.crowd is None or tools.utility is None):
        raise BackflipError(
            'alarm.gold = "people" needs judgements amid the climb, and this run\'s raters are people.\n'
            "A climb cannot wait for people yet: only simulated raters answer at once.\n"
            'Name a function as gold (alarm.gold = "module:name"), or take it out of the plan.'
        )
    if gold == "utility" and tools.utility is None:
        raise BackflipError(
            'alarm.gold = "utility" needs a true utility, and nobody knows one here.\n'
            "Only tasks with simulated raters have one.\n"
            'Name a function as gold (alarm.gold = "module:name"), or take it out of the plan.'
        )
