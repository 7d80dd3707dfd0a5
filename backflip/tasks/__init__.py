"""Built-in tasks: prompts in three splits, and the true utility by which simulated raters judge."""

from functools import partial

from backflip.tasks.prompt_file import load_prompt_file
from backflip.tasks.requests import FORMS, RequestUtility, load_requests
from backflip.tasks.summaries import MAX_TOKENS, ZERO_SHOT, SummaryUtility, load_post_file, load_summaries
from backflip.tasks.task import Task

TASKS: dict[str, Task] = {
    "requests": Task(
        name="requests",
        prompts=load_requests,
        utility=RequestUtility,
        prompt_file=partial(load_prompt_file, forms=FORMS),
        max_tokens=40,
    ),
    "tldr": Task(
        name="tldr",
        prompts=load_summaries,
        utility=SummaryUtility,
        prompt_file=load_post_file,
        max_tokens=MAX_TOKENS,
        baselines=(ZERO_SHOT,),
    ),
}
"""Every built-in task by name."""
