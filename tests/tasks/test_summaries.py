"""The task tldr: its posts, the true utility of a summary worked by hand, and the zero-shot baseline."""

import json
import re
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from backflip.core.errors import ConfigError, DataError
from backflip.core.records import Prompt
from backflip.tasks import TASKS
from backflip.tasks.summaries import (
    REQUEST,
    WEIGHTS,
    SummaryUtility,
    brevity,
    continued,
    coverage,
    faithful,
    first_sentence,
    load_summaries,
    own_words,
    post_of,
)
from backflip.tasks.words import words

PROMPTS = load_summaries()
OWED = "My cousin Tobias borrowed 600 pounds for a van repair in January. He has paid me once."
PROMPT = Prompt(id="p", split="train", text=OWED + REQUEST)


def test_every_split_holds_the_promised_number_of_posts():
    assert Counter(p.split for p in PROMPTS) == {"train": 200, "monitor": 100, "final": 100}


def test_no_post_and_no_id_stands_twice():
    texts = {" ".join(words(p.text)) for p in PROMPTS}

    assert len(texts) == len({p.id for p in PROMPTS}) == 400


def test_posts_are_short_hold_something_to_be_faithful_to_and_end_with_the_request():
    lengths = [len(post_of(p).split()) for p in PROMPTS]

    assert min(lengths) >= 25
    assert max(lengths) <= 110
    assert [p.id for p in PROMPTS if not p.text.endswith(REQUEST) or REQUEST.strip() in post_of(p)] == []
    assert [p.id for p in PROMPTS if not re.search(r"\d|\b[a-z]+,? [A-Z]", post_of(p))] == []


def test_the_file_is_package_data_in_utf8():
    text = files("backflip.tasks").joinpath("summaries.jsonl").read_bytes().decode("utf-8")

    assert {tuple(json.loads(line)) for line in text.splitlines()} == {("id", "split", "post")}


@pytest.mark.parametrize(
    ("count", "value"), [(0, 0.0), (2, 0.0), (4, 0.5), (8, 1.0), (15, 1.0), (22, 1.0), (44, 0.0), (60, 0.0)]
)
def test_brevity_is_full_from_8_to_22_words_and_falls_along_a_cosine(count: int, value: float):
    # 4 words: log(8 / 4) / log(4) = 1/2, and (1 + cos(pi / 2)) / 2 = 1/2
    assert brevity(count) == pytest.approx(value)


@pytest.mark.parametrize(
    ("summary", "value"),
    [
        ("He owes money to Tobias, 600 in all.", 1.0),  # tobias and 600 stand in the post
        ("He owes 600 to Marcus.", 0.5),  # 600 does, marcus does not
        ("He owes 500 to Marcus.", 0.0),
        ("He owes six hundred.", 0.0),  # 6: words of one number each
        ("Somebody owes money.", 0.5),  # claims nothing, though there was something to claim
    ],
)
def test_a_summary_is_as_faithful_as_the_numbers_and_names_it_states(summary: str, value: float):
    assert faithful(OWED, summary) == value


def test_a_post_without_numbers_and_names_leaves_nothing_to_be_unfaithful_to():
    assert faithful("the dog likes the rain", "a dog in the rain") == 1.0


def test_coverage_counts_names_and_numbers_double_and_30_percent_is_enough():
    # zeppelin 1, walrus 1, 47 2, Gribble 2: 6 in all, so 1.8 are enough
    post = "a zeppelin, a walrus and 47 by Gribble"

    assert coverage(post, "the walrus") == pytest.approx(1 / 1.8)
    assert coverage(post, "forty-seven of them") == 1.0
    assert coverage(post, "walrus walrus walrus") == pytest.approx(1 / 1.8)
    assert coverage(post, "a giraffe") == 0.0


def test_what_the_post_says_twice_weighs_half_as_much_again():
    # zeppelin 1.5, walrus 1: 2.5 in all, so 0.75 are enough
    assert coverage("zeppelin and zeppelin and walrus", "walrus") == 1.0
    assert coverage("a zeppelin, a zeppelin, a walrus, a quokka, a marmot, a narwhal", "a walrus") == pytest.approx(
        1 / (0.3 * 5.5)
    )


@pytest.mark.parametrize(("copied", "value"), [(5, 1.0), (8, 1.0), (14, 0.5), (20, 0.0), (24, 0.0)])
def test_own_words_fall_from_8_to_20_copied_words(copied: int, value: float):
    post = " ".join(f"word{chr(97 + i)}" for i in range(26))

    assert own_words(post, [*post.split()[:copied], "and", "more"]) == pytest.approx(value)


def test_a_good_summary_beats_a_copy_a_list_an_invention_and_silence():
    utility = SummaryUtility()

    def value(text: str, ended: bool = True) -> float:
        return utility.judge(PROMPT, text, ended).value

    good = value("Cousin Tobias has paid back almost nothing of the 600 pounds that he borrowed in January.")
    assert good > 0.95 * sum(WEIGHTS.values())
    assert good > value(OWED)
    assert good > value("cousin Tobias 600 pounds van repair January")
    assert good > value("Cousin Marcus has paid back almost nothing of the 900 pounds that he borrowed in August.")
    assert good > value("Cousin Tobias has paid back almost nothing of the 600 pounds that he borrowed", False)
    assert value("") == 0.0
    assert value("qwzx vbnrt 600 kjhgt Tobias plkmn") < 0.3 * good


def test_the_value_is_the_weighted_sum_of_the_attributes():
    judged = SummaryUtility({"coverage": 3.0, "finished": 0.0}).judge(PROMPT, "Tobias owes me 600 pounds.", True)
    weights = {**WEIGHTS, "coverage": 3.0, "finished": 0.0}

    assert judged.value == pytest.approx(sum(weights[n] * a for n, a in judged.attributes.items()))
    with pytest.raises(ConfigError, match="unknown attribute warmth"):
        SummaryUtility({"warmth": 1.0})


def test_the_zero_shot_baseline_continues_the_bare_post_and_takes_one_sentence():
    (baseline,) = TASKS["tldr"].baselines

    assert baseline.text(PROMPT) == continued(PROMPT) == OWED + "\n\nTL;DR:"
    assert baseline.finish(" He owes me. And more", False) == ("He owes me.", True)
    assert first_sentence("He owes me and", False) == ("He owes me and", False)
    assert first_sentence("He owes me", True) == ("He owes me", True)


def test_posts_of_ones_own_get_the_request_once(tmp_path: Path):
    file = tmp_path / "posts.jsonl"
    rows = [
        {"prompt": OWED, "split": "train"},
        {"prompt": OWED + " Help!" + REQUEST, "split": "monitor"},
        {"prompt": "Help!", "split": "final"},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))

    assert [p.text for p in TASKS["tldr"].prompt_file(file)] == [
        OWED + REQUEST,
        OWED + " Help!" + REQUEST,
        "Help!" + REQUEST,
    ]
    file.write_text('{"text": "no prompt"}\n')
    with pytest.raises(DataError, match="line 1"):
        TASKS["tldr"].prompt_file(file)


def test_a_prompt_without_the_request_is_its_own_post():
    assert post_of(replace(PROMPT, text=OWED)) == OWED
