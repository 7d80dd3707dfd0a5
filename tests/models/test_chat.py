"""From a request to tokens and back, by the tokenizer's own rules."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import ASSISTANT, BOS, EOS, RAGGED, STOP, USER, chat, hf_model, llama_of, prompt, tokenizer
from transformers import GenerationConfig

from backflip.core.errors import DataError
from backflip.models.chat import Chat, open_chat
from backflip.models.load import Loaded


def opened(folder: Path, **more: object) -> Chat:
    return open_chat(Loaded(llama_of(hf_model("llama")), tokenizer(**more), str(folder)))  # type: ignore[arg-type]


def test_the_template_comes_from_the_tokenizer():
    # "<user> w9 <eos> <assistant>"; no second <bos> or <eos> is added
    assert chat().encode(RAGGED[0]) == [USER, 9, EOS, ASSISTANT]


def test_a_model_without_a_template_continues_plain_text_after_bos():
    assert chat(template=False).encode(RAGGED[0]) == [BOS, 9]


def test_without_a_bos_token_plain_text_stands_alone():
    assert chat(template=False, bos=False).encode(RAGGED[0]) == [9]


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt():
    from tokenizers.processors import TemplateProcessing

    talk = chat(template=False)
    talk.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )

    assert talk.tokenizer("w9")["input_ids"] == [BOS, 9, EOS]
    assert talk.encode(RAGGED[0]) == [BOS, 9]


def test_a_prompt_may_fill_the_context_to_the_last_token():
    # 4 tokens of prompt and 6 of answer in a context of 10
    talk = chat(context=10)

    assert len(talk.encode(RAGGED[0], 6)) == 4
    with pytest.raises(DataError, match=r"Prompt short has 4 tokens; with 7 .* context of 10"):
        talk.encode(RAGGED[0], 7)


def test_the_frame_is_what_stands_around_every_request():
    assert chat().frame == {USER, EOS, ASSISTANT}
    assert chat(template=False).frame == {BOS}
    assert chat(template=False, bos=False).frame == frozenset()


def test_an_empty_prompt_is_refused_by_name():
    with pytest.raises(DataError, match="Prompt none has no tokens"):
        chat(template=False, bos=False).encode(prompt("none", ""))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([30, 31, EOS], "w30 w31"),
        ([30, STOP], "w30"),
        ([30, 31], "w30 w31"),
        ([EOS], ""),
        ([], ""),
        ([30, EOS, 31, EOS], "w30 w31"),
    ],
)
def test_the_text_leaves_stop_tokens_out(tokens: list[int], text: str):
    assert chat().decode(tokens) == text


def test_an_ordinary_token_that_ends_answers_is_left_out_at_the_end_only():
    assert chat(stops=(EOS, 30)).decode([30, 31, 30]) == "w30 w31"


def test_stop_tokens_are_those_of_tokenizer_and_generation_config(tmp_path: Path):
    GenerationConfig(eos_token_id=[STOP, 77]).save_pretrained(tmp_path)

    assert opened(tmp_path).stops == (EOS, STOP, 77)


def test_one_stop_token_in_the_generation_config_is_enough(tmp_path: Path):
    GenerationConfig(eos_token_id=STOP).save_pretrained(tmp_path)

    assert opened(tmp_path).stops == (EOS, STOP)


def test_without_a_generation_config_the_tokenizers_end_stands(tmp_path: Path):
    talk = opened(tmp_path)

    assert talk.stops == (EOS,)
    assert talk.context == 64
    assert talk.templated
    assert not opened(tmp_path, template=False).templated


def test_an_answer_is_written_as_the_template_writes_it_with_one_stop_token_at_its_end():
    # the template puts <eos> behind every message: "<user> ? <eos> <assistant> w7 w8 <eos>"
    talk = chat()

    assert talk.encode_answer("w7 w8") == [7, 8, EOS]
    assert talk.decode(talk.encode_answer("w7 w8")) == "w7 w8"


def test_a_template_that_does_not_end_answers_gets_the_stop_token_put_there():
    talk = chat()

    assert talk.encode_answer("w7 w8") == [7, 8, EOS]


def test_what_a_template_puts_behind_the_stop_token_is_no_part_of_the_answer():
    talk = chat()
    talk.tokenizer.chat_template = talk.tokenizer.chat_template + "{% if not add_generation_prompt %} w9{% endif %}"

    assert talk.encode_answer("w7 w8") == [7, 8, EOS]


def test_what_was_said_before_stands_before_the_request():
    # "<user> w9 <eos> <assistant> w7 <eos> <user> w8 <eos> <assistant>"
    asked = replace(RAGGED[0], text="w8", history=(("user", "w9"), ("assistant", "w7")))

    assert chat().encode(asked) == [USER, 9, EOS, ASSISTANT, 7, EOS, USER, 8, EOS, ASSISTANT]
    assert chat(template=False).encode(asked) == [BOS, 9, 7, 8]


def test_a_conversation_that_the_template_refuses_is_told():
    talk = chat()
    talk.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"

    with pytest.raises(DataError, match=r"refuses this conversation: System role not supported"):
        talk.encode(replace(RAGGED[0], history=(("system", "w9"),)))


def test_without_a_template_an_answer_ends_with_the_tokenizers_end():
    assert chat(template=False).encode_answer("w7 w8") == [7, 8, EOS]
