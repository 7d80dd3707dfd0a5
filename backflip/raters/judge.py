"""A language model as one more rater: behind any endpoint that speaks OpenAI's chat completions, or on this machine.

Each pair is asked about twice, once in either order; where the two answers disagree it is a tie, so that a lean to the
answer named first cannot decide a vote. Nothing here trusts the judge: the rater model learns how far that goes.
Source: Zheng et al. 2023 (arXiv:2306.05685), section 3.4.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from backflip.core.config import require
from backflip.core.errors import BackflipError, ConfigError
from backflip.core.records import Prompt

Verdict = Literal["a", "b", "tie", "skip"]
SAID: Final = re.compile(r"\W*(?:answer\W+|the better answer is\W+)?(A|B|tie)\b", re.IGNORECASE)
LONGEST_WAIT_S = 30.0
QUESTION = """\
{instructions}

Request:
{request}

Answer A:
{a}

Answer B:
{b}

Which answer is better? Reply with one word: A, B or tie."""


@dataclass(frozen=True, kw_only=True)
class JudgePlan:
    """A language model that rates besides. It votes on pairs that serve the fit, never on held-out ones."""

    url: str = ""
    """Where it is asked: an endpoint of OpenAI's chat completions, as "http://localhost:8000/v1"; empty for none."""
    model: str = ""
    """Its name at the endpoint; without `url` a folder or Hub id of a model that is asked on this machine. Empty: no
    judge."""
    key: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key; one that is not set sends none."""
    share: float = 1.0
    """Share of the fit's pairs, by lot, that it judges."""
    pairs: int = 500
    """Pairs it is asked about in the whole run at most; each takes two requests."""
    timeout_s: float = 60.0
    """Seconds to wait for one reply."""
    retries: int = 3
    """How often a request that failed is sent again."""
    instructions: str = "You compare two answers to a request. Judge which one serves whoever asked better."
    """What it is told to look at."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(not self.url or self.url.startswith(("http://", "https://")), "url", "empty, or an http address")
        require(bool(self.model) or not self.url, "model", "the model's name at the endpoint")
        require(0 <= self.share <= 1, "share", "a number from 0 to 1")
        require(self.pairs >= 0, "pairs", "a whole number of 0 or more")
        require(0 < self.timeout_s < 3600, "timeout_s", "a number above 0 and below 3600")
        require(self.retries >= 0, "retries", "a whole number of 0 or more")


class NoReply(BackflipError):
    """The judge did not reply, however often it was asked."""


class Ask(Protocol):
    """Whoever answers a question in words."""

    def __call__(self, question: str) -> str:
        """The reply. Raises: NoReply."""
        ...


class Endpoint:
    """A judge behind HTTP."""

    def __init__(self, plan: JudgePlan, sleep: Callable[[float], None] = time.sleep) -> None:
        import httpx

        key = os.environ.get(plan.key, "")
        self._errors: type[Exception] = httpx.TransportError
        self._plan, self._sleep = plan, sleep
        self._client = httpx.Client(
            timeout=plan.timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {}, follow_redirects=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __call__(self, question: str) -> str:
        """One reply, asked for again after a timeout, a broken connection, a 429 or a fault of the server.

        Raises: NoReply when none came; ConfigError when the endpoint refuses the request itself.
        """
        plan, why = self._plan, ""
        body = {
            "model": plan.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 16,
        }
        for turn in range(plan.retries + 1):
            wait = min(LONGEST_WAIT_S, 0.5 * 2**turn)
            try:
                reply = self._client.post(f"{plan.url.rstrip('/')}/chat/completions", json=body)
            except self._errors as e:
                why = str(e) or type(e).__name__
            else:
                if reply.status_code == 200:
                    return _content(reply)
                why = f"it answered {reply.status_code}"
                if reply.status_code != 429 and reply.status_code < 500:
                    raise ConfigError(
                        f"The judge at {plan.url} refuses: {reply.status_code} {reply.text[:200]!r}.\n"
                        f"The address, the model {plan.model!r} or the key in {plan.key} does not fit.\n"
                        "Correct judge.url, judge.model or the key, then start again with the same command."
                    )
                wait = max(wait, min(LONGEST_WAIT_S, _seconds(reply.headers.get("retry-after", ""))))
            if turn < plan.retries:
                self._sleep(wait)
        raise NoReply(
            f"The judge at {plan.url} did not reply: {why} ({plan.retries + 1} tries).\n"
            "It may be down or overloaded, or judge.timeout_s too short.\n"
            "Nothing is lost: start again with the same command when it is back."
        )


def judge_pair(ask: Ask, instructions: str, prompt: Prompt, a: str, b: str) -> Verdict:
    """Which of two answers is better, asked in both orders; "tie" where they disagree, "skip" for a reply in no sense.

    Raises: as `ask`.
    """
    forth = read_reply(ask(question(instructions, prompt, a, b)))
    back = read_reply(ask(question(instructions, prompt, b, a)))
    if forth is None or back is None:
        return "skip"
    turned = {"a": "b", "b": "a", "tie": "tie"}[back]
    return forth if forth == turned else "tie"


def question(instructions: str, prompt: Prompt, a: str, b: str) -> str:
    """What the judge is asked."""
    said = [*(f"{role}: {text}" for role, text in prompt.history), prompt.text]
    return QUESTION.format(instructions=instructions, request="\n".join(said), a=a.strip(), b=b.strip())


def read_reply(reply: str) -> Literal["a", "b", "tie"] | None:
    """What a reply says; None when it says nothing of the kind."""
    found = SAID.match(reply.strip())
    said: dict[str, Literal["a", "b", "tie"]] = {"a": "a", "b": "b", "tie": "tie"}
    return said[found[1].lower()] if found else None


def _content(reply: Any) -> str:
    """The text of a reply; empty where it has none."""
    try:
        choices: Sequence[Any] = reply.json()["choices"]
        return str(choices[0]["message"]["content"] or "")
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


def _seconds(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0
