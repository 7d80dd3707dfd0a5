"""Every command is explained, help is quick, and faults of ours keep their traceback."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from backflip import __version__
from backflip.cli import main as command_line

GROUP = typer.main.get_command(command_line.app).commands  # type: ignore[attr-defined]
COMMANDS = GROUP | {f"{name} {part}": c for name, g in GROUP.items() for part, c in getattr(g, "commands", {}).items()}
README = Path(__file__).parents[2] / "README.md"
HEAVY = ("torch", "transformers", "numpy", "scipy", "sqlalchemy", "plotly")


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, check=False)


def test_the_commands_are_those_of_the_readme():
    told = re.findall(r"^\| `backflip (\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(told) == sorted(GROUP)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_every_option_is_explained(backflip, name: str):
    said = backflip(*name.split(), "--help")

    assert said.code == 0
    assert len(COMMANDS[name].help) > 10
    assert f"backflip {name}" in said.out
    for p in COMMANDS[name].params:
        assert len(p.help or "") > 8, p.name


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"init", "export", "alarm"}))
def test_every_command_that_tells_figures_takes_json(name: str):
    assert any("--json" in p.opts for p in COMMANDS[name].params)


def test_help_does_not_wait_for_heavy_imports():
    code = f"import sys, backflip.cli.main; print([m for m in {HEAVY!r} if m in sys.modules])"

    assert python("-c", code).stdout == "[]\n"


def test_python_m_backflip_is_the_command_line():
    assert python("-m", "backflip", "--version").stdout == f"{__version__}\n"


def test_a_wrong_option_is_refused_with_the_usage(backflip):
    said = backflip("run", "--rounds", "0")

    assert said.code == 2
    assert "Usage: backflip run" in said.err


def test_a_fault_of_ours_keeps_its_traceback(backflip, monkeypatch):
    def broken(**_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(command_line, "app", broken)

    with pytest.raises(ZeroDivisionError):
        backflip("status")


def test_ctrl_c_in_any_command_is_one_line(backflip, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("backflip.cycle.folder.newest_run", stop)
    said = backflip("status")

    assert said.code == 130
    assert said.err == "stopped\n"
