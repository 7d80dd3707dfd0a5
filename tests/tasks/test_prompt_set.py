import json
from collections import Counter
from importlib.resources import files

import pytest

from backflip.core.errors import DataError
from backflip.tasks import TASKS
from backflip.tasks.requests import FORMS, load_requests
from backflip.tasks.words import stem, words

PROMPTS = load_requests()
SPLITS = {"train": 344, "monitor": 110, "final": 110}


def of_split(split: str) -> list:
    return [p for p in PROMPTS if p.split == split]


def topic(prompt) -> frozenset[str]:
    return frozenset(prompt.topic.split())


def test_every_split_holds_the_promised_number_of_requests():
    assert Counter(p.split for p in PROMPTS) == SPLITS


def test_no_request_and_no_id_stands_twice():
    texts = {" ".join(words(p.text)) for p in PROMPTS}

    assert len(texts) == len({p.id for p in PROMPTS}) == len(PROMPTS) == 564


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("form", "share"), [("sentence", 0.35), ("list", 0.30), ("couplet", 0.10), ("", 0.25)])
def test_every_split_has_the_same_mix_of_forms(split: str, form: str, share: float):
    mine = of_split(split)

    assert sum(p.form == form for p in mine) / len(mine) == pytest.approx(share, abs=0.015)


def test_requests_are_short_and_name_two_to_four_topic_words():
    assert [p.text for p in PROMPTS if len(p.text.split()) > 25] == []
    assert [p.text for p in PROMPTS if not 2 <= len(topic(p)) <= 4] == []
    assert {p.form for p in PROMPTS} == set(FORMS)


@pytest.mark.parametrize(("form", "needs"), [("sentence", "one"), ("list", "three"), ("couplet", "rhyming couplet")])
def test_the_form_is_asked_for_in_the_text(form: str, needs: str):
    asked = [p.text for p in PROMPTS if p.form == form]

    assert [t for t in asked if needs not in t.lower() or form not in t.lower()] == []


def test_a_request_without_a_form_names_none():
    free = [p.text.lower() for p in PROMPTS if not p.form]

    assert [t for t in free if "sentence" in t or "couplet" in t or t.startswith("list ")] == []


def test_most_final_prompts_are_about_something_that_is_never_trained_on():
    trained = {stem(w) for p in of_split("train") for w in topic(p)}
    fresh = [p for p in of_split("final") if trained.isdisjoint(stem(w) for w in topic(p))]

    assert len({topic(p) for p in PROMPTS}) >= 300
    assert len(fresh) >= 55  # half of 110


def test_the_file_is_package_data_in_utf8_with_the_fields_of_a_prompt():
    text = files("backflip.tasks").joinpath("requests.jsonl").read_bytes().decode("utf-8")

    assert {tuple(json.loads(line)) for line in text.splitlines()} == {("id", "split", "text", "topic", "form")}


def test_the_task_is_found_by_name_and_judges_its_own_prompts():
    task = TASKS["requests"]
    utility = task.utility(None)

    judged = utility.judge(task.prompts()[0], "A short and happy answer.", True)

    assert task.name == "requests"
    assert tuple(judged.attributes) == utility.names


def test_the_task_refuses_a_form_that_its_utility_cannot_check(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Write a sonnet.", "form": "sonnet"}\n')

    with pytest.raises(
        DataError, match='line 1: form = "sonnet" does not fit.\nIt must be one of sentence, list, coup'
    ):
        TASKS["requests"].prompt_file(path)
