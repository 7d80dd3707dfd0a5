import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backflip.core.errors import ConfigError
from backflip.core.records import Prompt
from backflip.tasks.requests import WEIGHTS, RequestUtility, finished, form, length, load_requests, once, sense, subject
from backflip.tasks.words import words

UTILITY = RequestUtility()
CAT = Prompt(
    id="cat",
    split="train",
    text="Write one friendly sentence to thank a neighbour for feeding the cat.",
    topic="thank neighbour cat",
    form="sentence",
)
GOOD = "Thank you, neighbour, for looking after my lovely cat while I was away at the sea."


def asking(form: str, topic: str = "snow", text: str = "Say it.") -> Prompt:
    return Prompt(id="p", split="train", text=text, topic=topic, form=form)


def test_a_good_sentence_earns_every_attribute():
    # 16 words, the target; VADER: thank 1.5 + lovely 2.8 = 4.3; 4.3 / sqrt(4.3^2 + 15) = 0.7430
    judged = UTILITY.judge(CAT, GOOD, True)

    whole = {"subject": 1.0, "form": 1.0, "once": 1.0, "finished": 1.0, "length": 1.0}
    assert judged.attributes == pytest.approx({"warmth": (1 + 0.7430) / 2, **whole}, abs=1e-4)
    assert judged.value == pytest.approx(1.5 * 0.8715 + 1 + 1 + 0.5 + 0.5 + 0.75, abs=1e-4)


@pytest.mark.parametrize("text", ["", "   \n", "...", "!?", "* - •"])
@pytest.mark.parametrize("ended", [True, False])
def test_an_answer_without_words_earns_nothing(text: str, ended: bool):
    judged = UTILITY.judge(CAT, text, ended)

    assert judged.value == 0
    assert set(judged.attributes.values()) == {0.0}


@pytest.mark.parametrize(
    "text",
    [
        "Xqzt vrrp blorg znnk wqpf drrl hgbv kkjl mnbz qqrt ppxv zzyk ttrw llpq vvbn xxcd.",
        "cat cat cat cat cat cat cat cat cat cat cat cat cat cat cat cat.",
        "love love love love love love love love love love love love love love love love!",
        "Yes.",
        "🍷黑彩被到突漆中",
    ],
)
def test_gibberish_and_one_word_said_over_and_over_earn_little(text: str):
    judged = UTILITY.judge(CAT, text, True)

    assert judged.value < 1.2  # of 5
    assert judged.attributes["warmth"] < 0.3
    assert judged.attributes["subject"] < 0.3


def test_sense_is_whole_for_ordinary_text_and_a_share_otherwise():
    assert sense(words(GOOD)) == 1
    assert sense([]) == 0
    # 2 of 4 words known: 0.5 / 0.8; all different; 4 different
    assert sense(["the", "cat", "xqzt", "vrrp"]) == pytest.approx(0.625)
    # known; 1 of 4 different: 0.25 / 0.5; 1 different: 1 / 4
    assert sense(["cat"] * 4) == pytest.approx(0.125)


@pytest.mark.parametrize(("text", "warmth"), [("The table has four legs.", 0.5), ("I hate this awful table!", 0.1)])
def test_warmth_is_a_half_for_neutral_text_and_little_for_hostile_text(text: str, warmth: float):
    assert UTILITY.judge(CAT, text, True).attributes["warmth"] == pytest.approx(warmth, abs=0.05)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("Thanks to my neighbors, the cats are well.", 1.0),
        ("The cat, the cat, and once more the cat.", 1 / 3),
        ("My neighbour has a dog.", 1 / 3),
        ("Nothing of the kind.", 0.0),
        # seven words in the order of the request are a copy, which touches nothing
        ("Thank a neighbour for feeding the cat.", 0.0),
        # the same, and then one topic word of its own
        ("Thank a neighbour for feeding the cat. Cats!", 1 / 3),
        # a run of five (neighbour for feeding the cat) is still one's own
        ("A kind neighbour for feeding the cat!", 2 / 3),
    ],
)
def test_subject_counts_each_topic_word_once_and_no_copies(text: str, share: float):
    assert subject(CAT, words(text)) == pytest.approx(share)


def test_without_a_topic_three_content_words_of_the_prompt_are_enough():
    prompt = Prompt(id="p", split="train", text="How do I paint a garden fence before winter?")

    # content words: paint, garden, fence, winter
    assert subject(prompt, words("Paint the fence")) == pytest.approx(2 / 3)
    assert subject(prompt, words("Paint the garden fence in winter")) == 1
    assert subject(Prompt(id="p", split="train", text="How are you?"), words("Fine")) == 0


@pytest.mark.parametrize(
    ("asked", "text", "score"),
    [
        ("sentence", "The snow falls softly.", 1.0),
        ("sentence", "The snow falls. It is cold.", 0.5),
        ("sentence", "The snow falls. It is cold. We go in.", 0.25),
        ("sentence", "Snow falls", 0.5),  # 2 of at least 4 words
        ("list", "1. hat\n2. towel\n3. book", 1.0),
        ("list", "A hat, a towel and a book.", 1.0),
        ("list", "- hat\n- towel", 0.5),
        ("list", "1. a\n2. b\n3. c\n4. d\n5. e", 0.25),
        ("list", "1. only this", 0.25),
        ("list", "You should bring a hat.", 0.0),
        ("couplet", "The night is white with snow,\nand soon the stars will glow.", 1.0),
        ("couplet", "The night is white with snow,\nand soon the stars will shine.", 0.5),
        ("couplet", "The night is white with snow,\nand soon comes more snow.", 0.5),
        ("couplet", "All white with snow,\n\nthe stars now glow,\nand so we go.", 0.5),  # 0.25 shape + 0.25 rhyme
        ("couplet", "The night is white with snow.", 0.25),
        ("", "Take a hat. It is cold. Go slowly.", 1.0),
        ("", "Take a hat. It is cold. Go slowly. Eat well.", 0.5),
        ("", "1. Take a hat.\n2. Go slowly.", 0.5),
    ],
)
def test_form_is_graded_by_how_far_the_answer_is_from_it(asked: str, text: str, score: float):
    assert form(asked, text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The snow is white and cold.", 1.0),
        ("Hi", 1.0),
        # 6 runs of three words: red hat now, hat now red, now red hat, and the same 3 again
        ("red hat now red hat now red hat", 0.5),
        # of 4 runs 1 is a repeat, of 2 sentences 1: the greater share counts
        ("It is so. It is so.", 0.5),
    ],
)
def test_once_falls_with_repeated_runs_and_sentences(text: str, score: float):
    assert once(words(text), text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("asked", "text", "ended", "score"),
    [
        ("sentence", "It snows.", True, 1.0),
        ("sentence", 'She said: "It snows!"', True, 1.0),
        ("sentence", "**It snows.**", True, 1.0),
        ("sentence", "It snows", True, 0.5),
        ("sentence", "It snows.", False, 0.25),
        ("sentence", "It snows and", False, 0.0),
        ("list", "1. hat\n2. towel\n3. book", True, 1.0),
        ("list", "1. hat\n2. towel\n3. book", False, 0.0),
        ("sentence", "1. hat\n2. towel\n3. book", True, 0.5),
    ],
)
def test_finished_needs_the_stop_token_and_a_closed_end(asked: str, text: str, ended: bool, score: float):
    assert finished(asked, text, ended) == score


@pytest.mark.parametrize(
    ("count", "score"),
    # ratio 2: ln 2 / ln 3 = 0.6309; (1 + cos(0.6309 pi)) / 2 = 0.3001; ratio 4/3: 0.2619 -> 0.8401
    [
        (12, 1.0),
        (6, 0.3001),
        (24, 0.3001),
        (16, 0.8401),
        (9, 0.8401),
        (4, 0.0),
        (36, 0.0),
        (1, 0.0),
        (200, 0.0),
        (0, 0.0),
    ],
)
def test_length_falls_smoothly_to_nothing_at_three_times_and_a_third(count: int, score: float):
    assert length(count, 12) == pytest.approx(score, abs=1e-4)


def test_weights_can_be_changed_one_at_a_time_and_the_default_stays():
    warm = RequestUtility({"warmth": 3.0, "length": 0.0})

    judged = warm.judge(CAT, GOOD, True)

    assert judged.value == pytest.approx(3 * 0.8715 + 1 + 1 + 0.5 + 0.5, abs=1e-3)
    assert WEIGHTS["warmth"] == UTILITY.weights["warmth"] == 1.5


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"charm": 1.0}, "unknown attribute charm.\nKnown here: warmth, subject"),
        ({"warmth": -1.0}, "warmth = -1.0 does not fit"),
        ({"warmth": float("nan")}, "warmth = nan does not fit"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused(weights: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        RequestUtility(weights)


def test_a_form_nobody_can_check_is_refused():
    with pytest.raises(ValueError, match="sonnet"):
        UTILITY.judge(asking("sonnet"), GOOD, True)


@given(st.text(max_size=200), st.sampled_from(["sentence", "list", "couplet", ""]), st.booleans())
def test_any_text_gets_the_same_value_twice_and_attributes_between_0_and_1(text: str, asked: str, ended: bool):
    judged = UTILITY.judge(asking(asked), text, ended)

    assert judged == RequestUtility().judge(asking(asked), text, ended)
    assert tuple(judged.attributes) == tuple(WEIGHTS)
    assert all(0 <= a <= 1 for a in judged.attributes.values())
    assert judged.value == pytest.approx(sum(WEIGHTS[n] * a for n, a in judged.attributes.items()))


def test_the_utility_describes_itself_in_full():
    text = RequestUtility({"warmth": 2.5}).describe()

    assert "0 to 6.25" in text  # 2.5 + 1 + 1 + 0.5 + 0.5 + 0.75
    assert [row[0] for row in UTILITY.table()] == list(WEIGHTS)
    assert all(f"x {name}" in text and meaning in text for name, _, meaning in UTILITY.table())


def test_a_thousand_answers_take_less_than_a_second_of_processor_time():
    prompts = load_requests()[:100]
    UTILITY.judge(prompts[0], GOOD, True)
    start = time.process_time()

    for prompt in prompts * 10:
        UTILITY.judge(prompt, GOOD, True)

    assert time.process_time() - start < 1.0
