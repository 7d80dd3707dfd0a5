import pytest

from backflip.tasks.words import content_stems, list_items, sentences, stem, words


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("neighbour", "neighbors"),
        ("packing", "packed"),
        ("cookie", "cookies"),
        ("grandmother's", "grandmother"),
        ("colours", "color"),
        ("hour's", "hour"),
        ("running", "run"),
    ],
)
def test_forms_of_one_word_share_a_stem(a: str, b: str):
    assert stem(a) == stem(b)


@pytest.mark.parametrize(("a", "b"), [("cat", "car"), ("bread", "bred"), ("hour", "hor")])
def test_different_words_keep_different_stems(a: str, b: str):
    assert stem(a) != stem(b)


def test_words_are_lower_case_with_straight_apostrophes():
    assert words("It’s WARM, 3 cats_and “dogs”!") == ["it's", "warm", "3", "cats", "and", "dogs"]


def test_content_stems_leave_out_the_words_of_the_request_itself():
    assert content_stems("Write one friendly sentence about the cats.") == ("cat",)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("One thing", 1),
        ("One thing. Another", 2),
        ("Dr. Smith came at 5 p.m. and left.", 1),
        ('"Come in." She smiled.', 2),
        ("It costs 3.50 today.", 1),
        ("A line\nand another line", 2),
        ("1. Take a hat. 2. Take a towel.", 2),
        ("Really?! Yes…  Fine.", 3),
    ],
)
def test_sentences_are_counted_as_a_reader_would(text: str, count: int):
    assert len(sentences(text)) == count


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. hat\n2. towel\n3. book", 3),
        ("Here you are:\n- hat\n- towel\n- book\nHave fun!", 3),
        ("1) hat 2) towel 3) book", 3),
        ("1. hat\n2. towel\n3.", 2),
        ("1. hat\n2. Hat!\n3. book", 2),
        ("Three things:\nhat\ntowel\nbook", 3),
        ("Hat, towel and book.", 3),
        ("You could pack: a hat, a towel, or a book.", 3),
        ("a hat, a towel, a book, and water", 4),
        ("Bring a hat.", 0),
        ("Bring a hat and a towel.", 0),
        ("10:30 is a fine time to meet.", 0),
        ("When I was a child we always went to the sea, and my mother packed a hat.", 0),
    ],
)
def test_lists_are_found_in_each_way_people_write_them(text: str, items: int):
    assert len(list_items(text)) == items
