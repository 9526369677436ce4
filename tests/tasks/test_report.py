"""What is shown of a run, where, and when; and what can never reach a terminal."""

import io
import re
import time
from contextlib import suppress

import pytest

from nextile.tasks import report
from nextile.tasks.report import Bar, Plain, Silent, Terminal, choose, clock, one_line, printable

HOSTILE = "\x1b[2J\x1b]0;title\x07[red]bold[/red]\r\x9b31m\x00 caf\u00e9 :smile: \u6f22\x7f\b"
HARMLESS = "[2J]0;title[red]bold[/red]31m caf\u00e9 :smile: \u6f22"


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for the time module, and moves when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def ticking(monkeypatch) -> Clock:
    ticking = Clock()
    monkeypatch.setattr(report, "time", ticking)
    return ticking


@pytest.fixture
def screen(monkeypatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


def say_everything(to, text: str) -> None:
    to.say(text)
    to.warn(text)
    to.table(text, [(text, text)])
    to.sample(text, text)
    with to.bar(text, 2, "steps") as bar:
        bar.update(1, field=text)


# --- text that may be shown ---------------------------------------------------------------------------------------


def test_control_characters_never_pass():
    assert printable(HOSTILE) == HARMLESS
    every = "".join(map(chr, range(0x2000)))
    assert re.findall(r"[\x00-\x1f\x7f-\x9f]", printable(every)) == ["\t", "\n"]


def test_one_line_is_one_line():
    assert one_line("a\nb\r\nc\u2028d\x1b") == "a b c d"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (62.6, "1:03"), (3723, "1:02:03"), (360000, "100:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


# --- a log --------------------------------------------------------------------------------------------------------


def test_plain_lines_have_no_control_characters(ticking):
    stream = io.StringIO()
    to = Plain(stream)
    say_everything(to, HOSTILE)
    with to.bar(HOSTILE, 10, HOSTILE) as bar:
        ticking.now += 10
        bar.update(3, name=HOSTILE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())
    assert HARMLESS in stream.getvalue()


def test_plain_lines():
    stream = io.StringIO()
    to = Plain(stream)
    to.say("reading")
    to.warn("slow")
    to.table("plan", [("steps", "12"), ("parameters", "1,234")])
    to.sample("step 1", "It was\na night\n")
    lines = [
        "reading",
        "warning: slow",
        "plan",
        "  steps       12",
        "  parameters  1,234",
        "step 1",
        "  It was",
        "  a night",
    ]
    assert stream.getvalue().splitlines() == lines


def test_a_log_survives_a_full_disk():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    Plain(Full()).say("lost, but the run goes on")


def test_a_bar_of_less_than_two_seconds_leaves_no_trace(ticking):
    stream = io.StringIO()
    with Plain(stream).bar("short", 10, "steps") as bar:
        for _ in range(10):
            ticking.now += 0.19
            bar.advance()
    assert stream.getvalue() == ""


def test_a_log_gets_a_line_every_five_seconds_and_the_end(ticking):
    stream = io.StringIO()
    with Plain(stream).bar("training", 200, "steps") as bar:
        for step in range(200):
            ticking.now += 0.1
            bar.update(step + 1, loss="2.5", speed="9 tok/s")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training: 10%  20 of 200 steps  0:18 left  loss 2.5  9 tok/s"
    assert lines[-1] == "training: 100%  200 of 200 steps  in 0:20  loss 2.5  9 tok/s"
    assert len(lines) == 1 + 3 + 1  # at 2, 7, 12, 17 and 20 seconds


def test_the_lines_of_a_long_run_come_less_often(ticking):
    stream = io.StringIO()
    with Plain(stream).bar("training", 36_000, "steps") as bar:
        for _ in range(36_000):
            ticking.now += 1
            bar.advance()
    assert len(stream.getvalue().splitlines()) < 400  # of ten hours


def test_bytes_are_counted_in_thousands(ticking):
    stream = io.StringIO()
    with Plain(stream).bar("tokenizing", 2_500_000, "B") as bar:
        ticking.now += 3
        bar.update(999_600)
    assert "tokenizing: 39%  1.0 MB of 2.5 MB" in stream.getvalue()


# --- how far ------------------------------------------------------------------------------------------------------


def test_the_time_left_of_a_resumed_run_counts_from_where_it_starts(ticking):
    bar = Bar("training", 1000, "steps")
    bar.update(900)
    assert bar.timing == ""
    ticking.now += 10
    bar.update(950)
    assert bar.timing == "0:10 left"
    ticking.now += 4  # without news
    assert bar.timing == "0:06 left"


def test_the_pace_is_the_recent_one(ticking):
    bar = Bar("training", 1000, "steps")
    bar.update(1)
    for step in range(2, 200):
        ticking.now += 10 if step == 2 else 1  # the first step compiles
        bar.update(step)
    assert bar.timing == "13:21 left"


def test_a_bar_that_moves_its_end(ticking):
    bar = Bar("training", 10, "steps")
    bar.update(5)
    bar.resize(100)
    assert bar.percent == "5%"


@pytest.mark.parametrize(
    ("done", "total", "percent"), [(0, 7, "0%"), (999.9, 1000, "99%"), (3, 3, "100%"), (0, 0, "100%")]
)
def test_percent(done, total, percent):
    bar = Bar("", total, "steps")
    bar.update(done)
    assert bar.percent == percent


# --- a terminal ---------------------------------------------------------------------------------------------------


def test_a_model_cannot_drive_the_terminal(screen, monkeypatch):
    monkeypatch.setattr(report, "DELAY", 0.01)
    to = Terminal(screen)
    say_everything(to, HOSTILE)
    with to.bar(HOSTILE, 10, "steps") as bar:
        bar.update(3, name=HOSTILE)
        time.sleep(0.1)
    ours = re.sub(r"\x1b\[(?:[0-9;]*m|\?25[hl]|2K|1A)|\r(?=\n|\x1b\[2K)", "", screen.getvalue())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ours)
    assert "[red]bold[/red]" in ours
    assert ":smile:" in ours


def test_a_short_bar_leaves_no_trace_on_a_terminal(screen):
    with Terminal(screen).bar("short", 2, "steps") as bar:
        bar.advance(2)
    assert screen.getvalue() == ""


def test_a_bar_appears_without_news_and_shows_its_fields(screen, monkeypatch):
    monkeypatch.setattr(report, "DELAY", 0.01)
    with Terminal(screen).bar("training", 100, "steps") as bar:
        time.sleep(0.1)
        assert "training" in screen.getvalue()
        bar.update(50, loss="1.234", lr="3.0e-03")
    assert re.search(r"50%.*loss 1.234  lr 3.0e-03", screen.getvalue())


def test_the_cursor_returns_after_an_error(screen, monkeypatch):
    monkeypatch.setattr(report, "DELAY", 0.01)
    with suppress(KeyboardInterrupt), Terminal(screen).bar("training", 100, "steps"):
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")


def test_a_bar_within_a_bar_makes_room_again(screen, monkeypatch):
    monkeypatch.setattr(report, "DELAY", 0.01)
    to = Terminal(screen)
    with to.bar("outer", 2, "steps") as outer:
        time.sleep(0.05)
        with to.bar("inner", 2, "steps") as inner:
            time.sleep(0.05)
            inner.update(2)
        outer.update(2)
    *_, last, cursor = screen.getvalue().splitlines()
    assert cursor == "\x1b[?25h"
    assert "inner" in screen.getvalue()
    assert "outer" in last
    assert "inner" not in last


def test_no_color_leaves_out_the_colours(screen, monkeypatch):
    coloured = re.compile(r"\x1b\[[0-9;]*\b(3[0-9]|4[0-9]|9[0-7])[0-9;]*m")
    Terminal(screen).warn("careful")
    assert coloured.search(screen.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(report, "DELAY", 0.01)
    plain = Screen()
    to = choose(plain)
    say_everything(to, "text")
    with to.bar("bar", 2, "steps") as bar:
        time.sleep(0.1)
        bar.update(1)
    assert not coloured.search(plain.getvalue())
    assert "\u2501" in plain.getvalue()  # the bar is there


# --- which one ----------------------------------------------------------------------------------------------------


def test_choose(screen, monkeypatch):
    assert isinstance(choose(screen), Terminal)
    assert isinstance(choose(io.StringIO()), Plain)
    assert isinstance(choose(screen, quiet=True), Silent)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose(screen), Plain)
    monkeypatch.setattr("sys.stderr", None)
    assert isinstance(choose(), Silent)


def test_silence(capsys):
    say_everything(Silent(), "text")
    assert capsys.readouterr() == ("", "")
