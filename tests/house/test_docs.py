"""What the README and the pages in docs/ promise is there."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language; "" is the fence without a name."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def shell_lines(page: Path) -> list[str]:
    """The commands a reader would copy, without their comments."""
    lines = [line.partition("#")[0].strip() for text in blocks(page, "sh") for line in text.splitlines()]
    return [line for line in lines if line]


def tree_paths(text: str) -> list[str]:
    """The paths of a file tree that is indented by two spaces a level."""
    stack: list[str] = []
    paths = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        stack[depth:] = [line.split()[0].rstrip("/")]
        paths.append("/".join(stack))
    return paths


@cache
def help_of(command: str) -> str:
    """What `backflip <command> --help` prints."""
    code = f"import sys; sys.argv = {['backflip', *command.split(), '--help']}; "
    code += "from backflip.cli.main import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "PATH": ""},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_a_tree_is_read_level_by_level():
    assert tree_paths("a/\n  b/   x\n    c.py  y\n  d.py\ne.md  z\n") == ["a", "a/b", "a/b/c.py", "a/d.py", "e.md"]


def test_the_readme_begins_with_two_commands():
    assert shell_lines(README)[:2] == ["make demo", "make test"]


@every_page
def test_every_make_command_is_a_target(page: Path):
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))

    assert named - make_targets() == set()


def test_every_path_in_the_file_tree_exists():
    paths = [path for text in blocks(README, "") for path in tree_paths(text)]

    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_file_tree_shows_every_floor():
    paths = {path for text in blocks(README, "") for path in tree_paths(text)}
    floors = {f"backflip/{path.parent.name}" for path in (ROOT / "backflip").glob("*/__init__.py")}

    assert floors - paths == set()


@every_page
def test_every_file_that_is_named_or_linked_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(r"`((?:backflip|tests|docs|bench|\.ci)/[\w/.]+)`", text)

    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []


@every_page
def test_every_command_exists_with_its_options(page: Path):
    lines = shell_lines(page) + re.findall(r"`(backflip [^`]+)`", page.read_text(encoding="utf-8"))
    for line in lines:
        if not line.startswith("backflip "):
            continue
        command, *words = line.split()[1:]
        assert command in help_of(""), line
        if command == "export" and words:
            command = f"{command} {words[0]}"
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in help_of(command), line


def test_every_extra_is_on_the_page_about_installing():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(extras)


def test_the_readme_links_every_page():
    links = re.findall(r"\]\((docs/[^)#]+\.md)", README.read_text(encoding="utf-8"))

    assert {ROOT / link for link in links} >= {page for page in PAGES if page.parent.name == "docs"}


@every_page
def test_every_plan_in_a_page_is_toml(page: Path):
    for text in blocks(page, "toml"):
        tomllib.loads(text)
