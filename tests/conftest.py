"""What every test runs under: no network, no deadlines on a busy machine, and no silent skip in CI."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shared machine is slow at times: hypothesis must not call that a failure. Same examples every time.
settings.register_profile("backflip", deadline=None, derandomize=True, database=None)
settings.load_profile("backflip")

pytest_plugins = ["postgresql"]

SKIPS: pytest.StashKey[list[str]] = pytest.StashKey()


def in_ci() -> bool:
    """Whether a skipped test counts as a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SKIPS] = []
    config.pluginmanager.register(SkipWatch(config.stash[SKIPS]), "skip-watch")


class SkipWatch:
    """Remembers what was skipped, test by test and file by file."""

    def __init__(self, skips: list[str]) -> None:
        self.skips = skips

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.skips.append(f"{report.nodeid}: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if in_ci() and session.config.stash[SKIPS] and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = config.stash[SKIPS]
    if in_ci() and skips:
        terminalreporter.section("CI: a skipped test is a failure", sep="=", red=True)
        for line in skips:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in Hugging Face format: 2 layers, 32 wide, 60 words."""
    from tiny_run import save_model

    return save_model(tmp_path_factory.mktemp("tiny") / "model")
