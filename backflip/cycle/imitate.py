"""Stage 0: before the first round, a base model learns from demonstrations and becomes the run's untouched model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from backflip.core.errors import DataError
from backflip.core.records import Answer, Metric, Prompt
from backflip.core.rng import generator
from backflip.cycle.artefacts import remove, write_whole
from backflip.cycle.checkpoints import newest_checkpoint, save_checkpoint
from backflip.cycle.folder import BASE, PLAN, SFT_FOLDER, sft_checkpoints
from backflip.cycle.measure import answered
from backflip.cycle.paths import here
from backflip.cycle.people import LEARNED, learned_keys, wait_for_written
from backflip.cycle.plan import Plan
from backflip.cycle.refused import save_refused, stopped
from backflip.cycle.tools import Tools
from backflip.data.records import Demonstration
from backflip.data.table import read_table
from backflip.models.adapters import Adapter
from backflip.models.chat import Chat
from backflip.models.save import model_card, save_merged
from backflip.policies.foresight import keep_within_memory, longest, need_of_step
from backflip.policies.not_finite import NotFinite
from backflip.policies.sft import fresh_imitator, imitate, nats_per_token, steps_of
from backflip.policies.state import PolicyState
from backflip.sampling.portion import Portion
from backflip.sampling.score import Reader
from backflip.store import Store

STEP = "sft"
SAVED_EVERY = 20
"""Steps between two checkpoints, and between two looks at the demonstrations held out."""


def imitate_demonstrations(tools: Tools) -> None:
    """Fine-tune the base model in `tools` and save it merged as `SFT_FOLDER`; let the base answer what measuring needs.

    Killed anywhere, the same call carries on. Raises: DataError for demonstrations that cannot be learned from;
    BackflipError at a step whose loss or gradient is not finite; Paused while answers are to be written.
    """
    folder = tools.root / SFT_FOLDER
    if folder.exists():
        return
    for split in ("monitor", "final"):
        answered(0, tools, split, BASE)
    _settle_on_written(tools)
    try:
        adapter = _train(tools).adapter
    except NotFinite as e:
        file = save_refused(sft_checkpoints(tools.root).with_name("sft-refused.jsonl"), e)
        raise stopped(e, file, tools.root, may_skip=False) from e
    write_whole(folder, lambda part: _save(tools, adapter, part))
    remove(sft_checkpoints(tools.root))


def _save(tools: Tools, adapter: Adapter, folder: Path) -> None:
    """The base model with the adapter folded in, as a plain Hugging Face folder."""
    chat, base = tools.chat, tools.loaded.source
    save_merged(tools.loaded.trunk, adapter, chat.tokenizer, folder, stops=chat.stops)
    card = model_card("sft", base, plan=(tools.root / PLAN).read_text(encoding="utf-8"))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _train(tools: Tools) -> PolicyState:
    """The state after the last step, from the newest checkpoint."""
    plan, config = tools.plan, tools.plan.sft
    prompts, answers = demonstrations(here(tools.root, tools.store, plan), tools.store, tools.chat)
    order = generator(plan.seed, "held-out demonstrations").permutation(len(answers))
    out = np.sort(order[: round(config.held_out * len(answers))])
    kept = np.sort(order[len(out) :])
    micro = Portion(config.micro, "sft.micro", tools.watcher.say)
    reader = Reader(tools.loaded.trunk, tools.chat, micro=micro)
    state = newest_checkpoint(sft_checkpoints(tools.root), tools.loaded.trunk.device)
    if state is None:
        state = fresh_imitator(tools.loaded.trunk, config, plan.seed)
        save_checkpoint(state, sft_checkpoints(tools.root))
    total = steps_of(config, len(kept))
    tools.watcher.begin(f"stage 0: learn from {len(kept)} demonstrations", total)
    tools.watcher.advance(state.step)
    learned = [prompts[i] for i in kept], [answers[i] for i in kept]
    keep_within_memory(reader, need_of_step(reader, state.adapter, *longest(*learned)), min(config.micro, config.batch))
    for step in imitate(state, reader, *learned, config, seed=plan.seed):
        figures, pause = dict(step.metrics), step.state.step % SAVED_EVERY == 0 or step.state.step == total
        if len(out) and pause:
            figures["sft/heldout_loss"] = nats_per_token(
                step.state, reader, [prompts[i] for i in out], [answers[i] for i in out]
            )
        with tools.store.begin() as tx:
            tx.add_metrics(
                [Metric(round=0, step=STEP, tick=step.state.step, name=n, value=v) for n, v in figures.items()]
            )
        if pause:
            save_checkpoint(step.state, sft_checkpoints(tools.root))
        tools.watcher.advance(1, f"{figures['sft/loss']:.2f} nats a token")
    return state


def demonstrations(plan: Plan, store: Store | None, chat: Chat) -> tuple[list[Prompt], list[Answer]]:
    """What stage 0 learns from: the plan's file, then what people wrote, as prompts and tokenised answers.

    Of what people wrote, those that stage 0 has settled on, or all so far before it has. Raises: DataError.
    """
    prompts, answers = ([], []) if not plan.sft.demonstrations else _of_file(plan.sft.demonstrations, chat)
    settled = None if store is None else learned_keys(store)
    for key, (prompt, answer) in _written(store, chat).items() if store else ():
        if settled is None or key in settled:
            prompts.append(prompt)
            answers.append(answer)
    if len(prompts) < 2:
        raise DataError(
            f"Stage 0 has {len(prompts)} demonstration{'s' * (len(prompts) != 1)}, and needs at least 2.\n"
            "A model learns little from so few answers.\n"
            "Add some to the file of sft.demonstrations or let people write them (sft.written), or leave both out."
        )
    return prompts, answers


def _of_file(source: str, chat: Chat) -> tuple[list[Prompt], list[Answer]]:
    """A file's demonstrations. Raises: DataError naming file and line."""
    prompts, answers = [], []
    for n, record in enumerate(read_table(source, "demonstrations").records):
        if not isinstance(record, Demonstration):
            raise TypeError(f"{record.where} is no demonstration")
        prompt = Prompt(id=f"demonstration-{n}", split="train", text=record.prompt[-1][1], history=record.prompt[:-1])
        answer = _tokenised(prompt, record.answer, chat)
        if answer is None:
            raise DataError(
                f"{record.where}: prompt and answer have more tokens than the model's context of {chat.context}.\n"
                "What is cut off cannot be learned.\nShorten the row, or leave it out."
            )
        prompts.append(prompt)
        answers.append(answer)
    return prompts, answers


def _written(store: Store, chat: Chat) -> dict[str, tuple[Prompt, Answer]]:
    """What people wrote so far, by key, in the order it came; what the model's context cannot hold is left out."""
    found = store.people.demonstrations()
    asked = store.prompts_by_id(d.prompt_id for d in found)
    out: dict[str, tuple[Prompt, Answer]] = {}
    for d in found:
        prompt = replace(asked[d.prompt_id], id=f"written-{d.key}")  # several may have answered the same one
        answer = _tokenised(prompt, d.text, chat)
        if answer is not None:
            out[d.key] = prompt, answer
    return out


def _tokenised(prompt: Prompt, text: str, chat: Chat) -> Answer | None:
    """A text as an answer, with a stop token at its end; None when the model's context cannot hold it."""
    tokens = chat.encode_answer(text)
    if len(chat.encode(prompt)) + len(tokens) > chat.context:
        return None
    return Answer(
        prompt_id=prompt.id, index=0, policy=STEP, tokens=np.array(tokens, dtype=np.int64),
        logp=np.zeros(len(tokens), dtype=np.float32), ended=True, text=text,
    )  # fmt: skip


def _settle_on_written(tools: Tools) -> None:
    """Wait for as many written answers as the plan wants, then note which ones stage 0 learns from, once and for all.

    What is written later would change the untouched model that everything is measured against. Raises: Paused.
    """
    if learned_keys(tools.store) is not None:
        return
    in_file = len(_of_file(source, tools.chat)[0]) if (source := _source(tools)) else 0
    wait_for_written(tools, lambda: len(_written(tools.store, tools.chat)), least=max(0, 2 - in_file))
    keys, all_written = list(_written(tools.store, tools.chat)), len(tools.store.people.demonstrations())
    if len(keys) < all_written:
        left_out = all_written - len(keys)
        tools.watcher.say(f"stage 0: {left_out} written answers are longer than the model's context, and left out")
    with tools.store.begin() as tx:
        tx.set_note(LEARNED, json.dumps(keys))


def _source(tools: Tools) -> str:
    return here(tools.root, tools.store, tools.plan).sft.demonstrations
