"""In CI a skipped test fails the session; elsewhere it is only named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\n\n@pytest.mark.skip(reason='no database here')\ndef test_skips(): pass\n"
SKIPS_INSIDE = "import pytest\n\ndef test_skips(): pytest.skip('no database here')\n"
SKIPS_FILE = "import pytest\npytest.skip('no database here', allow_module_level=True)\n"
XFAILS = "import pytest\n\n@pytest.mark.xfail(reason='known')\ndef test_xfails(): assert False\n"


def session(folder: Path, ci: str, *tests: str) -> subprocess.CompletedProcess[str]:
    """A pytest session of its own, under the project's conftest."""
    for file in (CONFTEST, CONFTEST.with_name("postgresql.py")):
        shutil.copy(file, folder / file.name)
    for i, text in enumerate(tests):
        (folder / f"test_{i}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    env = {**os.environ, "CI": ci, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("skips", [SKIPS, SKIPS_INSIDE, SKIPS_FILE])
def test_in_ci_a_skip_fails_the_session_and_is_named(tmp_path: Path, skips: str):
    run = session(tmp_path, "true", PASSES, skips)

    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "CI: a skipped test is a failure" in run.stdout
    assert "test_1.py" in run.stdout.partition("a skipped test is a failure")[2]
    assert "no database here" in run.stdout
    assert "1 passed, 1 skipped" in run.stdout.splitlines()[-1]


def test_in_ci_a_session_without_skips_passes(tmp_path: Path):
    run = session(tmp_path, "true", PASSES, XFAILS)

    assert run.returncode == pytest.ExitCode.OK
    assert "a skipped test is a failure" not in run.stdout


def test_elsewhere_a_skip_does_not_fail_the_session(tmp_path: Path):
    run = session(tmp_path, "", PASSES, SKIPS)

    assert run.returncode == pytest.ExitCode.OK
    assert "a skipped test is a failure" not in run.stdout
