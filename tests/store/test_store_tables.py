import math

from backflip.core.records import Metric, Prompt
from backflip.store import Store

AWKWARD = [
    "",
    "plain",
    "nul \x00 inside",
    "\x1a",
    "\x1a0000 looks like an escape",
    "half \ud83d of an emoji",
    "\ue000\U0010ffff",
    "line\r\nfeed\u2028\\x00 'quote' \"%s\" :name",
]


def test_any_python_string_comes_back_as_it_was(store: Store):
    records = [Prompt(id=f"q{text}", split="train", text=text, topic=text) for text in AWKWARD]
    with store.begin() as tx:
        tx.add_prompts(records)
        tx.set_note(AWKWARD[2], AWKWARD[5])

    assert store.prompts() == records
    assert store.note(AWKWARD[2]) == AWKWARD[5]


def test_a_metric_may_be_no_number(store: Store):
    with store.begin() as tx:
        tx.add_metrics([Metric(round=1, step="fit", tick=0, name="n", value=math.nan, low=math.nan, high=-math.inf)])

    (found,) = store.metrics()
    assert math.isnan(found.value)
    assert (found.low, found.high) == (None, -math.inf)
