"""The pages in docs/ do what they say: their files are written, their commands and their Python run, in their order."""

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import call

from backflip.cycle.plan_docs import plan_page

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Block(NamedTuple):
    """A fenced block; `file` is the name in backquotes that ends the paragraph before it, empty when there is none."""

    kind: str
    text: str
    file: str


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        named = re.search(r"`([\w./-]+)`:\s*\Z", text[: found.start()])
        yield Block(found[1], found[2], named[1] if named else "")


@pytest.fixture
def desk(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder a reader is in: it holds a model in `my-model`. One thread: more only fight when cores are shared."""
    (tmp_path / "my-model").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_a_block_is_the_file_that_the_paragraph_before_it_names():
    found = list(blocks("guide.md"))

    assert [b.file for b in found if b.kind != "sh"] == [
        "prompts.jsonl", "plan.toml", "votes.jsonl", "demonstrations.jsonl", "base.toml",
    ]  # fmt: skip
    assert {b.file for b in found if b.kind == "sh"} == {""}


@pytest.mark.slow
def test_the_guide_runs_from_top_to_bottom(desk: Path) -> None:
    ran = []
    for block in blocks("guide.md"):
        if block.kind != "sh":
            (desk / block.file).write_text(block.text, encoding="utf-8")
            continue
        for line in block.text.splitlines():
            program, *words = shlex.split(line, comments=True)
            if program == "make":  # a target: see tests/house/test_docs.py
                continue
            said = call(*words, cwd=desk)
            assert (program, said.code) == ("backflip", 0), f"{line}\n{said.err}"
            ran.append(words[0])

    assert set(ran) == {"doctor", "run", "status", "report", "chat", "import", "compare", "export", "forget"}
    assert all((desk / name).exists() for name in ("mine", "mine.gguf", "mine-data", "runs/mine/report.html"))


@pytest.mark.slow
def test_the_python_page_runs_from_top_to_bottom(desk: Path) -> None:
    [prompts] = [b for b in blocks("guide.md") if b.file == "prompts.jsonl"]
    (desk / "prompts.jsonl").write_text(prompts.text, encoding="utf-8")
    notebook: dict[str, Any] = {"__name__": "__main__"}
    told = io.StringIO()
    code = [b.text for b in blocks("python.md") if b.kind == "python"]
    with redirect_stdout(told):
        for n, text in enumerate(code, 1):
            exec(compile(text, f"python.md, block {n}", "exec"), notebook)

    assert len(code) >= 6
    assert "True True\n" in told.getvalue()  # finished, by the plan that was given
    assert (desk / "runs" / "other" / "models" / "policy").is_dir()


def test_the_page_about_plans_says_what_the_dataclasses_say():
    assert (DOCS / "plan.md").read_text(encoding="utf-8") == plan_page(), "write it anew with: make docs"
