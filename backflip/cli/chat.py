"""`backflip chat`: talk to what a run has made."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.terminal import AsJson, RunFolder, err, print_json, run_folder
from backflip.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from backflip.cycle.talk import Policy


def chat(
    dir: RunFolder = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the untouched model instead.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Answer this one request and leave.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, help="Sampling temperature; the plan's when left out.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; the plan's when left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw other answers; the plan's when left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a run's newest finished policy, or to the untouched model."""
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt is empty.\nGive the request to answer, in quotes.")
    if as_json and prompt is None:
        raise ConfigError("--json needs a request to answer.\nGive it with --prompt.")
    from backflip.cycle.folder import REFERENCE
    from backflip.cycle.talk import load_policy

    version = REFERENCE if base else None
    talk = load_policy(run_folder(dir), version, temperature=temperature, max_tokens=max_tokens, seed=seed)
    if prompt is None:
        _converse(talk)
        return
    answer = talk.answer(prompt)
    if as_json:
        told = {"policy": talk.version, "prompt": prompt, "answer": answer.text}
        print_json(told | {"tokens": len(answer.tokens), "ended": answer.ended})
    else:
        typer.echo(answer.text)


def _converse(talk: "Policy") -> None:
    """Answer line after line until the input ends."""
    err(f"{talk.version}: answers of at most {talk.max_tokens} tokens. Each request stands alone; Ctrl-D ends.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            err("")
            return
        if not line:
            continue
        try:
            typer.echo(talk.answer(line).text + "\n")
        except DataError as e:
            err(str(e))
