"""What a run's progress looks like, on a terminal and in a log. Times are told by a clock that the test sets."""

import io

import pytest
from rich.console import Console

from backflip.cli.progress import LiveWatcher, PlainWatcher, Work, clock, watching


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def now() -> Clock:
    return Clock()


def test_time_left_is_the_pace_so_far_times_what_is_left():
    work = Work("climb", 10, 0.0)
    work.advance(4, "", 20.0)

    assert work.left_s(20.0) == 30.0  # 5 s a unit, 6 units left
    assert work.times(20.0) == "0:20, about 0:30 left"


def test_units_done_before_a_restart_do_not_count_as_pace():
    work = Work("climb", 10, 0.0)
    work.advance(6, "", 0.1)

    assert work.left_s(5.0) is None

    work.advance(2, "", 20.0)

    assert work.left_s(20.0) == 20.0  # 2 units took 20 s, 2 are left


@pytest.mark.parametrize(("seconds", "words"), [(7.4, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_a_clock_reads_like_a_clock(seconds: float, words: str):
    assert clock(seconds) == words


def test_plain_lines_come_at_once_then_every_five_seconds_and_at_the_end(now: Clock):
    out = io.StringIO()
    watcher = PlainWatcher(out, now)
    watcher.begin("climb", 5)
    for at in (102, 104, 106, 108, 109):
        now.now = float(at)
        watcher.advance(1, f"KL {at}")
    watcher.say("round 1: done")

    assert out.getvalue().splitlines() == [
        "climb ...",
        "climb: 1/5, KL 102, 0:02, about 0:08 left",
        "climb: 4/5, KL 108, 0:08, about 0:02 left",
        "climb: 5/5, KL 109, 0:09",
        "round 1: done",
    ]


def test_a_terminal_shows_what_happens_how_far_it_is_and_how_long_it_will_take(now: Clock):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    watcher = LiveWatcher(console, now)
    console.print(watcher.draw())
    watcher.begin("round 1: optimise", 14)
    now.now = 130.0
    watcher.advance(3, "KL 2.1")
    watcher.say("kept [for] good")
    console.print(watcher.draw())
    lines = screen.getvalue().splitlines()

    assert lines[0].endswith("starting")
    assert lines[1] == "kept [for] good"  # brackets are words here, not markup
    assert lines[2] == "round 1: optimise  KL 2.1"
    assert "3/14" in lines[3]
    assert "0:30, about 1:50 left" in lines[3]


def test_a_pipe_gets_plain_lines_and_a_terminal_a_live_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with watching(io.StringIO()) as plain, watching(Terminal()) as live:
        assert isinstance(plain, PlainWatcher)
        assert isinstance(live, LiveWatcher)
