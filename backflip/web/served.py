"""The run that is served: its store, what is kept of it in memory, and when that is looked up anew."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, final

from backflip.core.records import Guidelines, Pair, Prompt, Sample, Vote
from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.plan import read_plan
from backflip.store import Store
from backflip.store.forget import FORGOTTEN
from backflip.web.box import BallotBox
from backflip.web.clips import clip_type
from backflip.web.serving import Desk, ids_of

REFRESH_S = 1.0
"""How old the picture of the store may be from which pairs are handed out."""
_MOST_TEXTS = 4000


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
        self._lease_s = lease_s
        self._looking = asyncio.Lock()
        self._prompts: dict[str, Prompt] = {}
        self._samples: dict[str, dict[str, Any]] = {}
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything that is kept in memory."""
        self.desk = Desk(self.plan.seed, self.plan.rate, self._lease_s)
        self._seen, self._count, self._forgotten = 0, -1, self.store.note(FORGOTTEN)
        self._at = float("-inf")

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

    async def shown(self, pairs: list[Pair]) -> dict[str, dict[str, Any]]:
        """The answers of pairs as the API tells them, by id."""
        return await self.samples(ids_of(pairs))

    async def samples(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Answers as the API tells them, by id. Raises: DataError for an unknown one."""
        wanted = list(dict.fromkeys(ids))
        have = {i: self._samples[i] for i in wanted if i in self._samples}
        if len(have) < len(wanted):
            have |= await asyncio.to_thread(self._read, [i for i in wanted if i not in have])
            if len(self._samples) > _MOST_TEXTS:
                self._samples.clear()
            self._samples |= have
        return have

    async def turns(self, prompt_id: str) -> list[dict[str, str]]:
        """A prompt as messages."""
        if prompt_id not in self._prompts:
            self._prompts = {p.id: p for p in await asyncio.to_thread(self.store.prompts)}
        return turns(self._prompts[prompt_id])

    def _read(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        return {i: _told(sample, self.root) for i, sample in self.store.samples_by_id(ids).items()}

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


def turns(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as messages, what was said before it first."""
    said = [{"role": role, "content": content} for role, content in prompt.history]
    return [*said, {"role": "user", "content": prompt.text}]


def _told(sample: Sample, root: Path) -> dict[str, Any]:
    clip = clip_type(root, sample.id)
    return {"sample": sample.id, "text": sample.text} | ({"clip": clip} if clip else {})
