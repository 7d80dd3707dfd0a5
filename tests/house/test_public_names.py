"""The names of `import backflip`: few, quick to import, typed, documented, and every example of theirs has run."""

import ast
import doctest
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import new_run

import backflip
from backflip.cycle.run import run_rounds

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "python.md"
HEAVY = ("torch", "transformers", "numpy", "scipy", "sqlalchemy", "plotly", "rich", "typer")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
every_name = pytest.mark.parametrize("name", backflip.__all__)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, `mine` and `other`, that differ in their seed."""
    folder = tmp_path_factory.mktemp("public") / "runs"
    for name, seed in (("mine", 3), ("other", 4)):
        run_rounds(new_run(folder / name, tiny_model, seed=seed))
    return folder


@every_name
def test_every_public_name_has_an_example_that_runs(
    name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    thing = getattr(backflip, name)
    [example] = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    ran = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(example)

    assert any(f"backflip.{name}" in e.source for e in example.examples)
    assert ran.failed == 0, capsys.readouterr().out


@every_name
def test_every_public_name_is_explained_on_its_page_and_used_there(name: str):
    text = PAGE.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))

    assert re.search(rf"^\| `{name}\b[^|]*` \| .{{20,}} \|$", text, re.MULTILINE)
    assert f"backflip.{name}" in code


def test_the_page_explains_no_name_that_is_not_there():
    told = re.findall(r"^\| `(\w+)\b[^|]*` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(told) == sorted(backflip.__all__)


@every_name
def test_every_public_function_tells_the_types_it_takes_and_what_it_raises(name: str):
    thing = getattr(backflip, name)
    if not inspect.isfunction(thing):
        return
    signature = inspect.signature(thing)

    assert "Raises:" in inspect.getdoc(thing)
    assert signature.return_annotation is not inspect.Signature.empty
    assert [p for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty] == []


def test_type_checkers_see_the_very_names_that_there_are():
    tree = ast.parse(Path(backflip.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}

    assert seen == {name: f"backflip.{home}" for name, home in backflip._HOME.items()}
    assert sorted(seen) == sorted(backflip.__all__)
    assert set(backflip.__all__) < set(dir(backflip))


def test_importing_backflip_imports_nothing_heavy_and_no_floor():
    code = f"import sys, backflip; dir(backflip); print([m for m in sys.modules if m in {HEAVY!r} or 'backflip.' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert run.stdout == "[]\n"


def test_a_plan_needs_no_torch():
    code = "import sys, backflip; backflip.plan_for(rounds=1); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert run.stdout == "False\n"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lode_policy'"):
        backflip.lode_policy  # type: ignore[attr-defined]  # noqa: B018
