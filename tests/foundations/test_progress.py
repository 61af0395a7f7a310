"""Progress where output is no terminal: lines, at most so many, and no carriage return."""

import io
import sys

import pytest

from mth.foundations.progress import Bar, purpose, reply_bar


@pytest.fixture
def later(monkeypatch):
    """Moves the clock of all bars."""
    now, kept = [0.0], Bar.__init__

    def timed(self, *arguments, **settings):
        kept(self, *arguments, **settings)
        self._time, self.start_t, self.last_print_t = lambda: now[0], now[0], now[0]

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(Bar, "__init__", timed)
    return move


def test_lines_come_at_most_so_often_and_the_last_one_stays(later, capsys):
    with Bar(total=100, desc="train", unit="steps", every_s=10) as bar:
        for step in range(100):
            later(1)
            bar.set_postfix_str(f"reward {step / 100:.2f}", refresh=False)
            bar.update()
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert "\r" not in said and 9 <= len(lines) <= 11
    assert lines[0].startswith("train: 10 of 100 steps, reward 0.09, 01:") and lines[0].endswith(" left")
    assert lines[-1] == "train: 100 of 100 steps, reward 0.99, 00:00 left"
    assert len(set(lines)) == len(lines)


def test_what_is_refreshed_has_a_line_once_and_other_output_repeats_none(capsys):
    with Bar(total=3, desc="train", unit="steps") as bar:
        bar.update()
        bar.refresh()
        bar.refresh()
        Bar.write("warning: look", file=sys.stderr)
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" steps")[0] for line in lines] == ["train: 1 of 3", "warning: look", "train: 2 of 3"]


def test_generating_is_shown_under_its_purpose_if_it_takes_long_and_leaves_nothing(later, capsys):
    with purpose("evaluate gsm8k"), reply_bar(512) as bar:
        later(30)
        bar.update(100)
        assert capsys.readouterr().err == ""
        later(31)
        bar.update(100)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate gsm8k: 200 of 512 replies, 01:")
    with reply_bar(4) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_a_bar_that_is_switched_off_says_nothing(capsys):
    assert list(Bar([1, 2], desc="gram", unit="blocks", disable=True)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(total=3, desc="train", unit="steps") as bar:
        bar.update(3)
    assert "\r" in stream.getvalue() and "3/3" in stream.getvalue()
