"""Watching in a terminal: the curves of a run, the table of a grid."""

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from mth.grid.record import Grid
from mth.grid.show import status_frame
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry, write_journal
from mth.watch import Panel, draw, panels_of, seconds_per_step, series
from tests.conftest import begin, claim, make_config
from tests.grid.launched import entry_of


def entry(step, **more):
    metrics = {"reward/mean": step / 10, "entropy": 1 - step / 10, "completion/tokens_mean": 20.0, "tokens_per_second": 1234.0}
    evaluated = {"eval/arithmetic/pass_at_1": 0.5 + step / 100} if step % 2 == 0 else {}
    return Entry(step, 1000 * step, (metrics if step else {}) | evaluated | more)


@pytest.fixture
def run(tmp_path):
    """A run of 8 steps that has done 4."""
    claim(tmp_path / "run", make_config(train={"steps": 8}))
    write_journal(tmp_path / "run", [entry(step) for step in range(5)])
    return tmp_path / "run"


def test_panels_hold_what_the_journal_has_and_leave_out_what_is_no_number():
    entries = [entry(0), entry(1, entropy=float("nan")), entry(2)]
    panels = panels_of(entries, ["arithmetic", "gsm8k"])
    assert [panel.title for panel in panels] == ["reward", "pass@1", "entropy (nats)", "tokens of a reply"]
    assert panels[1].curves == {"arithmetic": ([0, 2], [0.5, 0.52]), "gsm8k": ([], [])}
    assert series(entries, "entropy") == ([2], [0.8])
    assert [panel.title for panel in panels_of([entry(0)], ["arithmetic"])] == ["pass@1"]
    assert panels_of([], ["arithmetic"]) == []


@pytest.mark.parametrize(("width", "height", "shown"), [(120, 40, 4), (80, 12, 2), (60, 20, 2), (40, 9, 1), (60, 60, 4)])
def test_curves_fit_the_terminal(width, height, shown):
    panels = [Panel(f"title {i}", {"": ([1, 2, 50], [0.1, 0.9, 0.5])}) for i in range(4)]
    lines = draw(panels, width, height).split("\n")
    assert len(lines) <= height and max(map(len, lines)) <= width
    assert [f"title {i}" in "\n".join(lines) for i in range(4)] == [i < shown for i in range(4)]
    assert "\x1b" not in "".join(lines) and "50" in lines[-1]


def test_the_pace_is_that_of_steps_without_pauses():
    entries = [Entry(step, 1000 * (step if step < 5 else step + 3600), {}) for step in range(10)]
    assert seconds_per_step(entries) == 1.0
    assert seconds_per_step(entries[:1]) is None


def said(*arguments):
    done = subprocess.run([sys.executable, "-m", "mth.watch", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_pipe_gets_the_curves_once(run):
    RunFolder(run).summary_file.write_text(json.dumps({"status": "interrupted"}))
    status, text, _ = said(run)
    assert status == 0 and "\x1b" not in text
    head = text.splitlines()[:2]
    assert head[0].endswith("-s99-m0-lr0.005: interrupted, step 4 of 8")
    assert head[1] == "reward 0.400, pass@1 0.540, 1,234 tokens/s"
    assert "pass@1" in text and "entropy" in text


def test_what_cannot_be_watched_is_one_line(run, tmp_path):
    assert said(tmp_path)[2] == f"error: {tmp_path} is not the folder of a run; look below it, or below multirun\n"
    Grid(tmp_path / "grid", tmp_path, tmp_path / "code", {}, "", []).write()
    assert "is a grid: python -m mth.grid status" in said(tmp_path / "grid")[2]
    RunFolder(run).journal_file.write_bytes(b"")
    assert "no step is done yet" in said(run, "--once")[1]
    RunFolder(run).config_file.write_text("model: {}}")
    status, _, error = said(run, "--once")
    assert status == 2 and "is damaged" in error and "Traceback" not in error


@contextmanager
def terminal(*command):
    """A command at a terminal of 80 x 24, and what it writes, as a function that waits for a text."""
    master, slave = pty.openpty()
    sized = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    process = begin([sys.executable, "-m", *command], stdin=slave, stdout=slave, stderr=slave, env=os.environ | sized)
    os.close(slave)
    written = bytearray()

    def until(text):
        start, end = len(written), time.monotonic() + 60
        while text.encode() not in written[start:]:
            assert time.monotonic() < end, f"waited for {text}: {written[start:].decode()}"
            if select.select([master], [], [], 0.2)[0]:
                try:
                    written.extend(os.read(master, 65536))
                except OSError:  # its end
                    assert text.encode() in written[start:], written.decode()

    yield process, until
    os.close(master)


def test_a_running_run_is_redrawn_until_it_ends(run):
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with terminal("mth.watch", run) as (process, until):
            until("running, step 4 of 8, 0:00:04 left")
            write_journal(run, [entry(step) for step in range(7)])
            until("running, step 6 of 8, 0:00:02 left")
            lock.close()
            until("ended without a word")
            assert process.wait(30) == 0


def test_status_watch_redraws_until_all_cells_have_ended(tmp_path):
    cell = entry_of(tmp_path, "a")
    Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [cell]).write()
    with open(cell.dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with terminal("mth.grid", "status", tmp_path, "--watch") as (process, until):
            until("1 running")
            write_journal(cell.dir, [entry(0), entry(1)])
            until("1/")
            RunFolder(cell.dir).summary_file.write_text(json.dumps({"status": "finished"}))
            lock.close()
            until("1 finished")
            assert process.wait(30) == 0


def test_a_table_that_is_too_long_shows_what_works_first(tmp_path):
    cells = [entry_of(tmp_path, f"cell{i}") for i in range(30)]
    grid = Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", cells)
    grid.write()
    with open(cells[25].dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text, over = status_frame(grid, 14)
        assert not over and len(text.splitlines()) == 13
        assert text.splitlines()[1].startswith("cell25") and text.splitlines()[-2] == "... and 20 more cells"
        assert text.splitlines()[-1].startswith("29 new, 1 running")
    text, over = status_frame(grid, 14)
    assert over and len(text.splitlines()) == 32
