"""The alarm amid a climb: looks every few steps, kept as figures of the step, and the way back when it rings.

Gold that answers at once is asked at the step itself. Looks that people judge are published, and weighed when their
judgements have come (`looks`); the climb goes on meanwhile.
"""

import json
import math
import time
from collections.abc import Mapping

import numpy as np

from backflip.core.errors import BackflipError, DataError
from backflip.core.records import Answer, Judged, Metric, Pair, Prompt
from backflip.core.rng import generator, seed_of
from backflip.cycle.artefacts import write_text
from backflip.cycle.folder import REFERENCE, alarm_path
from backflip.cycle.looks import Counted, OpenLook, Sides, counted, publish, published, votes_by_pair
from backflip.cycle.overview import serving
from backflip.cycle.people import POLL_S, SERVER_GONE_S, since_when
from backflip.cycle.tools import Tools
from backflip.measure.alarm import (
    BACK_TO,
    CLOSED,
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
from backflip.stats.falling import Look, in_doubt

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
        self._open: list[OpenLook] = []
        self._stored: dict[int, dict[str, float]] = {}
        self._late: list[Metric] = []
        self._asked, self._after = 0, 0
        if not self.plan.gold:
            return
        _require_gold(tools)
        self._function = gold_function(self.plan.gold) if ":" in self.plan.gold else None

    @property
    def kept(self) -> set[int]:
        """Steps whose checkpoints the climb may go back to."""
        ticks = [*(s.tick for s in self.seen), *(o.tick for o in self._open)]
        return {self.first, *(self.first + t for t in ticks)} if self.plan.gold else set()

    @property
    def by_people(self) -> bool:
        """Whether looks are judged by people, who take their time."""
        return self.plan.gold == "people" and self.tools.crowd is None

    def rang(self) -> bool:
        """Whether gold has fallen."""
        return self.ring is not None

    def resume(self, taken: int) -> None:
        """Take up the looks of the round's first `taken` steps, and whether the last one rang."""
        if not self.plan.gold:
            return
        for m in self.tools.store.metrics(round=self.number, step="optimise"):
            if m.name in (WINS, JUDGED, DISTANCE, FORETOLD, CLOSED):
                self._stored.setdefault(m.tick, {})[m.name] = m.value
        for tick in sorted(self._stored):
            if tick <= taken and _closed(self._stored[tick], tick) <= taken:
                self._add(tick, self._stored[tick])
        self._asked = sum(s.look.judged for s in self.seen)
        if self.by_people:
            looks = published(self.tools.root, self.number, taken)
            self._asked = sum(len(look.duels) for look in looks)
            self._open = [o for o in looks if _closed(self._stored.get(o.tick, {}), taken + 1) > taken]

    def look(self, state: PolicyState, kl: float) -> dict[str, float]:
        """The step's look, as figures; none where no look is due. `kl` is the step's, in nats."""
        tick = state.step - self.first
        if self.by_people:
            self._take_in(tick)
        due = self.plan.gold and not tick % self.plan.every and self._may_ask()
        if not due or self.rang():
            return {}
        figures, shown = self._lot(state, kl, 0)
        if not figures:
            return {}
        self._add(tick, figures)
        lot, last = 0, tick == self.tools.plan.ppo.steps
        while last and self.ring is None and in_doubt([s.look for s in self.seen]) and self._may_ask():
            lot += 1  # what is left of the labels goes to the policy that the round would end with
            more, shown = self._lot(state, kl, lot)
            figures = {n: v if n == DISTANCE else v + more[n] for n, v in figures.items()}
            self.seen.pop()
            self._add(tick, figures)
        return figures | self._rung(shown)

    def _may_ask(self) -> bool:
        return self._asked + self.plan.votes <= self.plan.labels

    def _lot(self, state: PolicyState, kl: float, lot: int) -> tuple[dict[str, float], list[Exhibit]]:
        """Judge one lot of fresh answers, or publish it where people judge: then there are no figures yet."""
        tick = state.step - self.first
        prompts, ours, theirs = self._answers(state, lot)
        gain = self.scorer.score(prompts, ours) - self.scorer.score(prompts, theirs)
        foretold = self.scorer.foretold(gain)
        self._asked += len(prompts)
        if self.by_people:
            sides = Sides(prompts, ours, theirs, foretold.tolist(), gain.tolist())
            self._open.append(publish(self.number, self.tools, tick, kl, sides))
            return {}, []
        named = f"{tick}+{lot}" if lot else str(tick)
        wins = [self._judge(p, a, b, named) for p, a, b in zip(prompts, ours, theirs, strict=True)]
        figures = {WINS: sum(wins), JUDGED: float(len(wins)), DISTANCE: kl, FORETOLD: float(foretold.sum())}
        said = [(p.text, a.text, b.text) for p, a, b in zip(prompts, ours, theirs, strict=True)]
        return figures, exhibits(said, gain.tolist(), wins)

    def late(self) -> list[Metric]:
        """Figures of earlier steps' looks that were weighed since this was last asked for."""
        late, self._late = self._late, []
        return late

    def end(self, taken: int) -> None:
        """Weigh what is still open after the round's last step; wait for people while its pages are served.

        They have `rate.deadline_minutes`, if the plan says so; looks are weighed as they are then.
        """
        if not self._open or self.rang():
            return
        tools, seen = self.tools, 0.0
        since = since_when(f"round {self.number} waits for judgements of its climb since", tools.store)
        limit = tools.plan.rate.deadline_minutes * 60 or math.inf
        tools.watcher.begin(f"round {self.number}: people judge the climb", len(self._open))
        while self._open and not self.rang():
            seen = time.monotonic() if serving(tools.root) is not None else seen
            gone = not seen or time.monotonic() - seen > SERVER_GONE_S
            before = len(self._open)
            self._take_in(taken, last=gone or time.time() - since >= limit)
            tools.watcher.advance(before - len(self._open))
            if self._open and not self.rang():
                time.sleep(POLL_S)

    def told(self) -> str:
        """The paragraph about an alarm that rang."""
        assert self.ring is not None
        return paragraph(self.ring, self.seen, self.tools.plan.ppo.kl_target, self._after)

    def _take_in(self, tick: int, *, last: bool = False) -> None:
        """Freeze and weigh, in order, the open looks that are full or have waited long enough; all if it is the last.

        What was weighed before the process was killed is weighed again as it was, whatever was cast since.
        """
        votes = votes_by_pair(self.tools, self.number) if self._open else {}
        while self._open and not self.rang():
            look, found = self._open[0], counted(self._open[0], votes)
            over = last or tick - look.tick >= self.plan.patience * self.plan.every
            figures = self._stored.get(look.tick)
            if figures is None and not (found.full or over):
                return
            self._open.pop(0)
            self._freeze(look, found, figures or _figures(look, found, tick))

    def _freeze(self, look: OpenLook, found: Counted, figures: dict[str, float]) -> None:
        self._add(look.tick, figures)
        said = [(d.prompt, d.ours, d.theirs) for d in found.duels]
        shown = exhibits(said, [d.gain for d in found.duels], found.wins)
        self._late += [
            Metric(round=self.number, step="optimise", tick=look.tick, name=name, value=value)
            for name, value in (figures | self._rung(shown)).items()
        ]

    def _add(self, tick: int, figures: dict[str, float]) -> None:
        """Weigh one look more; one that nobody judged says nothing."""
        if figures[JUDGED]:
            d = math.sqrt(max(figures[DISTANCE], 0.0))
            self.seen.append(Seen(tick, Look(d, figures[WINS], int(figures[JUDGED]))))
            self.ring, self._after = listen(self.seen, self.plan.rate), int(_closed(figures, tick))

    def _rung(self, shown: list[Exhibit]) -> dict[str, float]:
        """What is kept when the newest look made the alarm ring: figures, and `alarm.json` in the round's folder."""
        if self.ring is None:
            return {}
        kept = {"told": self.told(), "samples": [e._asdict() for e in shown]}
        write_text(alarm_path(self.tools.root, self.number), json.dumps(kept, ensure_ascii=False, indent=1))
        best = self.ring.best
        return {EVIDENCE: self.ring.evidence.log_e, BACK_TO: float(best.tick if best else 0)}

    def _answers(self, state: PolicyState, lot: int) -> tuple[list[Prompt], list[Answer], list[Answer]]:
        """Monitor prompts drawn by lot, answered anew by the policy and by the untouched model."""
        tools, pool = self.tools, self.tools.split("monitor")
        seed = seed_of(tools.plan.seed, "alarm", state.step, *([lot] if lot else []))
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

    def _judge(self, prompt: Prompt, ours: Answer, theirs: Answer, look: str) -> float:
        """1 where the policy's answer is better, 0 where it is worse."""
        if self._function is not None:
            name, judge = self.plan.gold, self._function
            return win(*(valued(name, judge, prompt.text, a.text) for a in (ours, theirs)))
        a, b = (_true(self.tools, prompt, x) for x in (ours, theirs))
        if self.plan.gold == "utility":
            return win(a.value, b.value)
        assert self.tools.crowd is not None
        pair = Pair(
            id=f"r{self.number}/alarm/{look}/{prompt.id}", round=self.number, stream="reference", prompt_id=prompt.id,
            sample_a="policy", sample_b=REFERENCE, policy=ours.policy,
        )  # fmt: skip
        return float(np.mean([OUTCOME[v.choice] for v in self.tools.crowd.votes(pair, a, b, at=0.0)]))


def _closed(figures: Mapping[str, float], tick: int) -> float:
    """The step after which a look of step `tick` was weighed."""
    return figures.get(CLOSED, float(tick))


def _figures(look: OpenLook, found: Counted, tick: int) -> dict[str, float]:
    """A look's figures as they are frozen after step `tick`."""
    return {
        WINS: sum(found.wins),
        JUDGED: float(len(found.wins)),
        DISTANCE: look.kl,
        FORETOLD: sum(d.foretold for d in found.duels),
        CLOSED: float(tick),
    }


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
    if gold == "utility" and tools.utility is None:
        raise BackflipError(
            'alarm.gold = "utility" needs a true utility, and nobody knows one here.\n'
            "Only tasks with simulated raters have one.\n"
            'Name a function as gold (alarm.gold = "module:name"), or take it out of the plan.'
        )
