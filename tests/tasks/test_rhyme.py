import pytest

from backflip.tasks.rhyme import is_word, rhymes


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("snow", "grow"),
        ("day", "weigh"),
        ("light", "kite"),
        ("ocean", "motion"),
        ("moonlight", "kite"),
        ("read", "red"),
        ("read", "seed"),
    ],
)
def test_words_that_sound_alike_from_the_last_stress_on_rhyme(a: str, b: str):
    assert rhymes(a, b)
    assert rhymes(b, a)


@pytest.mark.parametrize(("a", "b"), [("cough", "though"), ("love", "move"), ("garden", "sudden"), ("snow", "now")])
def test_words_that_only_look_alike_do_not_rhyme(a: str, b: str):
    assert not rhymes(a, b)


@pytest.mark.parametrize("word", ["snow", "blorf"])
def test_a_word_does_not_rhyme_with_itself(word: str):
    assert not rhymes(word, word)


@pytest.mark.parametrize(("a", "b"), [("blorf", "snorf"), ("zabe", "frabe"), ("blorf", "wharf")])
def test_an_unknown_word_is_judged_by_its_spelling(a: str, b: str):
    assert not is_word(a)
    # -orf and -orf, -abe and -abe rhyme; -orf and -arf do not
    assert rhymes(a, b) == (b != "wharf")


def test_nothing_rhymes_with_an_empty_word_or_one_without_vowels():
    assert not rhymes("", "snow")
    assert not rhymes("xzq", "qzx")


def test_the_dictionary_knows_possessives():
    assert is_word("hedgehog's")
    assert is_word("grandmother's")
    assert not is_word("qwzx's")
