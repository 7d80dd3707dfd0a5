"""Tests about the package itself: the rules of docs/architecture.md that no other tool counts."""

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import backflip

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "backflip"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS_WITH_STORE = {"store", "cycle", "studies", "report", "web", "cli"}
ABSTRACT = {"ABC", "Protocol", "DeclarativeBase", "NamedTuple", "TypedDict"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_module = pytest.mark.parametrize("path", MODULES, ids=name)


def tracked_files() -> list[Path]:
    """What git holds or would hold; what it ignores is not ours."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    return [path for line in out.split("\0") if line and (path := ROOT / line).is_file()]


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return table


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@every_module
def test_a_module_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@every_module
def test_a_file_holds_at_most_400_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@every_module
def test_a_function_holds_at_most_60_lines(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = {f.name: n for f in functions(tree) if (n := (f.end_lineno or 0) - f.lineno + 1) > 60}

    assert long == {}


@every_module
def test_no_file_or_folder_has_a_name_that_says_nothing(path: Path):
    words = {word for part in path.relative_to(PACKAGE).with_suffix("").parts for word in part.split("_")}

    assert words.isdisjoint({"util", "utils", "helper", "helpers", "base", "manager", "managers", "common", "misc"})


def test_a_class_inherits_only_from_abstract_classes_and_errors():
    classes = {
        node.name: [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }

    def may_be_inherited(parent: str) -> bool:
        bases = set(classes[parent])
        above = [b for b in bases if b in classes]
        is_error = any(b.endswith(("Error", "Exception")) for b in bases)
        return bool(bases & ABSTRACT) or is_error or any(may_be_inherited(b) for b in above)

    wrong = {c: b for c, bases in classes.items() for b in bases if b in classes and not may_be_inherited(b)}

    assert wrong == {}


def test_every_floor_that_may_not_open_the_store_is_in_the_contract():
    floors = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - FLOORS_WITH_STORE
    contracts = project()["tool"]["importlinter"]["contracts"]  # type: ignore[index]
    [store] = [contract for contract in contracts if contract["id"] == "store"]

    assert set(store["source_modules"]) == {f"backflip.{floor}" for floor in floors}


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").exists()


def test_the_version_is_written_once():
    metadata = project()["project"]

    assert "version" in metadata["dynamic"]  # type: ignore[index]
    assert "version" not in metadata  # type: ignore[operator]
    assert importlib.metadata.version("backflip") == backflip.__version__
    text = re.compile(rf"""^\s*(__)?version(__)?\s*=\s*["']{re.escape(backflip.__version__)}["']""", re.MULTILINE)
    assert [name(p) for p in tracked_files() if p.suffix in (".py", ".toml") and text.search(p.read_text("utf-8"))] == [
        "backflip/__init__.py"
    ]


def test_the_pinned_versions_fit_what_the_package_asks_for():
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    table = project()["project"]
    wanted = [*table["dependencies"], *table["optional-dependencies"]["dev"]]  # type: ignore[index]
    names = {re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}

    assert names - pins.keys() == set()
    assert pins["torch"] == "2.13.0"
    assert not [pin for pin in pins.values() if "+" in pin]


def test_no_file_names_the_machine_it_was_written_on():
    # Spelt in pieces, so that this file does not find itself.
    places = "|".join(["/" + "work/", "/" + "root/", "/" + "opt/wheels", "/" + "opt/pypi", "/" + "home/[a-z]"])
    hosts = "|".join(["files" + r"\.pythonhosted", "index" + "-url", "pypi" + r"\.org/simple", "arti" + "factory"])
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{name(path)}: {m[0]}" for m in re.finditer(rf"(?<![\w.~-])(?:{places})|{hosts}", text)]

    assert found == []


def test_test_files_have_names_of_their_own():
    files = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(files) == sorted(set(files))
