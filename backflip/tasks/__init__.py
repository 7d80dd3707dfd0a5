"""Built-in tasks: prompts in three splits, and the true utility by which simulated raters judge."""

from functools import partial

from backflip.tasks.prompt_file import load_prompt_file
from backflip.tasks.requests import FORMS, RequestUtility, load_requests
from backflip.tasks.task import Task

TASKS: dict[str, Task] = {
    "requests": Task(
        name="requests",
        prompts=load_requests,
        utility=RequestUtility,
        prompt_file=partial(load_prompt_file, forms=FORMS),
    )
}
"""Every built-in task by name."""
