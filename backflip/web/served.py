"""The run that is served: its store, what is kept of it in memory, and when that is looked up anew."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from backflip.core.records import Guidelines, Pair, Prompt, Sample, Vote
from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.plan import read_plan
from backflip.store import Store
from backflip.store.forget import FORGOTTEN
from backflip.web.box import BallotBox
from backflip.web.clips import clip_type
from backflip.web.serving import Desk, ids_of

if TYPE_CHECKING:
    from backflip.report.data import Baseline

REFRESH_S = 1.0
"""How old the picture of the store may be from which pairs are handed out."""
_MOST_TEXTS = 2000
_AT_ONCE = 64
"""Pairs whose texts are read together."""
Message = dict[str, str]


class Texts(NamedTuple):
    """What the API tells of pairs: prompts as messages, and answers, each by its id."""

    prompts: dict[str, list[Message]]
    samples: dict[str, dict[str, Any]]


class _News(NamedTuple):
    """What came into the store since it was last looked at."""

    pairs: list[Pair] | None
    votes: list[Vote]
    pair_count: int
    forgotten: str | None
    guidelines: Guidelines | None


@final
class Served:
    """A run's folder, plan and store, with the desk that hands out pairs and the box that takes votes."""

    def __init__(self, root: Path, lease_s: float) -> None:
        self.root = root
        self.plan = read_plan(root / PLAN)
        self.store: Store = run_store(root, self.plan)
        self.box = BallotBox(self.store)
        self.guidelines: Guidelines | None = None
        self.baseline: Baseline | None = None
        """What `panel` worked out of the untouched model's answers."""
        self._lease_s = lease_s
        self._looking, self._reading = asyncio.Lock(), asyncio.Lock()
        self._texts: dict[str, tuple[list[Message], dict[str, dict[str, Any]]]] = {}
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything that is kept in memory."""
        self.desk = Desk(self.plan.seed, self.plan.rate, self._lease_s)
        self._seen, self._count, self._forgotten = 0, -1, self.store.note(FORGOTTEN)
        self._at = float("-inf")

    def load(self) -> None:
        """Look into the store before anybody asks."""
        self._take(self._look(self._seen, self._count))

    def close(self) -> None:
        """Cast what is left, and close the store."""
        self.box.close()
        self.store.close()

    async def fresh(self) -> Desk:
        """The desk, with what came into the store up to `REFRESH_S` ago."""
        if time.monotonic() - self._at > REFRESH_S and (self._count < 0 or not self._looking.locked()):
            async with self._looking:
                for _ in range(3):  # begun anew meanwhile: look again, from the start
                    if time.monotonic() - self._at <= REFRESH_S:
                        break
                    desk, news = self.desk, await asyncio.to_thread(self._look, self._seen, self._count)
                    if self.desk is desk:
                        self._take(news)
        return self.desk

    async def told(self, pairs: Sequence[Pair]) -> Texts:
        """The answers and prompts of pairs, as the API tells them."""
        have = {p.id: self._texts[p.id] for p in pairs if p.id in self._texts}
        if len(have) < len(pairs):
            async with self._reading:  # whoever waited here may find theirs read together with another's
                have |= {p.id: self._texts[p.id] for p in pairs if p.id in self._texts}
                missing = [p for p in pairs if p.id not in have]
                if missing:
                    soon = [p for p in self.desk.soon(_AT_ONCE) if p.id not in self._texts]
                    found = await asyncio.to_thread(self._read, [*missing, *soon])
                    if len(self._texts) > _MOST_TEXTS:
                        self._texts.clear()
                    self._texts |= found
                    have |= found
        told = Texts({}, {})
        for pair in pairs:
            prompt, samples = have[pair.id]
            told.prompts[pair.prompt_id] = prompt
            told.samples.update(samples)
        return told

    def _read(self, pairs: Sequence[Pair]) -> dict[str, tuple[list[Message], dict[str, dict[str, Any]]]]:
        samples = self.store.samples_by_id(ids_of(pairs))
        prompts = self.store.prompts_by_id(p.prompt_id for p in pairs)
        return {
            p.id: (turns(prompts[p.prompt_id]), {i: _told(samples[i], self.root) for i in (p.sample_a, p.sample_b)})
            for p in pairs
        }

    def _look(self, seen: int, count: int) -> _News:
        # votes before pairs: whatever a vote is about is there already
        votes, now = self.store.vote_log(after=seen), self.store.count_pairs()
        versions = self.store.people.guidelines()
        return _News(
            self.store.pairs() if now != count else None, votes, now, self.store.note(FORGOTTEN),
            versions[-1] if versions else None,
        )  # fmt: skip

    def _take(self, news: _News) -> None:
        self.guidelines = news.guidelines
        if news.forgotten != self._forgotten:  # votes have left the store: nothing that was counted holds
            self.begin_anew()
            return
        self._at = time.monotonic()
        if news.pairs is not None:
            self.desk.open(news.pairs)
        for vote in news.votes:
            self.desk.note(vote)
            self._seen = max(self._seen, vote.seq or 0)
        self._count = news.pair_count


def turns(prompt: Prompt) -> list[Message]:
    """A prompt as messages, what was said before it first."""
    said = [{"role": role, "content": content} for role, content in prompt.history]
    return [*said, {"role": "user", "content": prompt.text}]


def _told(sample: Sample, root: Path) -> dict[str, Any]:
    clip = clip_type(root, sample.id)
    return {"sample": sample.id, "text": sample.text} | ({"clip": clip} if clip else {})
