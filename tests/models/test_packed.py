"""Packed batches, worked by hand."""

import pytest
import torch

from backflip.models.packed import answer_attention, pack, prompt_attention

# Prompts [11 12] and [21 22 23]; answers [31 32] to the second, [41] to the first, [51 52 53] to the second.
# Rows:     0  1        2  3  4               5  6                 7                   8  9 10
BATCH = pack([[11, 12], [21, 22, 23]], [[31, 32], [41], [51, 52, 53]], [1, 0, 1])


def test_prompts_come_first_then_answers():
    assert BATCH.ids.tolist() == [11, 12, 21, 22, 23, 31, 32, 41, 51, 52, 53]
    assert BATCH.prompt_rows.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert BATCH.prompt_mask.tolist() == [[True, True, False], [True, True, True]]
    assert BATCH.answer_rows.tolist() == [[5, 6, 0], [7, 0, 0], [8, 9, 10]]
    assert BATCH.answer_mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert BATCH.answer_prompt.tolist() == [1, 0, 1]
    assert BATCH.answers.tolist() == [[31, 32, 0], [41, 0, 0], [51, 52, 53]]


def test_an_answer_goes_on_where_its_own_prompt_ends():
    assert BATCH.positions.tolist() == [0, 1, 0, 1, 2, 3, 4, 2, 3, 4, 5]


def test_each_token_is_predicted_by_the_one_before_it():
    # the first by its prompt's last token: row 4 for the second prompt, row 1 for the first
    assert BATCH.predict_rows.tolist() == [[4, 5, 0], [1, 0, 0], [4, 8, 9]]


def test_the_last_row_is_the_last_real_token():
    assert BATCH.last_rows.tolist() == [6, 7, 10]


def test_an_empty_answer_ends_where_its_prompt_ends():
    batch = pack([[11, 12], [21]], [[], [31]], [0, 1])

    assert batch.last_rows.tolist() == [1, 3]
    assert pack([[11, 12], [21]], [[], []], [1, 0]).last_rows.tolist() == [2, 1]


def test_an_answer_sees_its_prompt_and_itself_up_to_now():
    mask = answer_attention(BATCH)

    assert mask is not None
    # the answer [41] to the first prompt: two real prompt tokens, then itself; rows 1 and 2 are padding
    assert mask[1, 0, 0].tolist() == [True, True, False, True, False, False]
    # [31 32]: the second token sees all three prompt tokens, the first answer token and itself
    assert mask[0, 0, 0].tolist() == [True, True, True, True, False, False]
    assert mask[0, 0, 1].tolist() == [True, True, True, True, True, False]
    assert mask.any(-1).all()  # no softmax is empty, padding included


def test_a_window_ends_what_is_seen():
    mask = answer_attention(BATCH, 3)

    assert mask is not None
    # [51 52 53] stand at 3, 4, 5 after the prompt's 0, 1, 2: a window of 3 leaves 1..3, 2..4 and 3..5
    assert mask[2, 0].int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    # [41] stands at 2 after 0, 1; its padding, at 3 and 4, sees itself at least
    assert mask[1, 0, 0].tolist() == [True, True, False, True, False, False]
    assert mask.any(-1).all()
    assert answer_attention(BATCH, 1)[1, 0].any(-1).all()  # type: ignore[index]
    assert torch.equal(answer_attention(BATCH, 6), answer_attention(BATCH) | torch.eye(3, 6).roll(3, 1).bool())  # type: ignore[operator, arg-type]


def test_a_prompts_token_sees_itself_and_what_the_window_holds_before_it():
    mask = prompt_attention(BATCH, 2)

    assert mask is not None
    assert mask.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert prompt_attention(BATCH) is None


def test_a_batch_may_hold_prompts_only():
    batch = pack([[11, 12], [21]])

    assert batch.ids.tolist() == [11, 12, 21]
    assert answer_attention(batch) is None
    assert batch.answers.shape == (0, 0)


@pytest.mark.parametrize(
    ("prompts", "answers", "owner", "why"),
    [
        ([[1], []], [], [], "no tokens"),
        ([], [], [], "no prompt"),
        ([[1]], [[2]], [], "1 answers but 0"),
        ([[1]], [[2]], [1], "none of 0..0"),
        ([[1]], [[2]], [-1], "none of 0..0"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    prompts: list[list[int]], answers: list[list[int]], owner: list[int], why: str
):
    with pytest.raises(ValueError, match=why):
        pack(prompts, answers, owner)


def test_the_pad_id_is_an_ordinary_token_when_it_is_real():
    # id 0 is a real token here: masks decide, never ids
    batch = pack([[0, 0]], [[0], [0, 0]], [0, 0])

    assert batch.answer_mask.tolist() == [[True, False], [True, True]]
    assert torch.equal(batch.ids, torch.zeros(5, dtype=torch.long))
