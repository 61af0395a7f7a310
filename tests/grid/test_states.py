"""The state of a cell from what launchers, runs and SLURM leave, in the order in which they left it."""

import fcntl
import json
import signal
import subprocess

import pytest

from mth.foundations.errors import UserError
from mth.grid import launch, slurm
from mth.grid.record import Grid, hold_launcher, log_event, read_grid
from mth.grid.state import cell_states, progress, running_elsewhere
from mth.runs.folder import host_name
from mth.runs.lock import lock_run
from tests.conftest import claim, make_config
from tests.grid.launched import entry_of, states


def state_of(folder, entry):
    grid = Grid(folder, folder, folder / "code", {}, "", [entry])
    grid.write()
    (cell,) = cell_states(grid)
    return cell


@pytest.fixture
def forgetful(monkeypatch):
    monkeypatch.setattr(slurm, "query", lambda jobs: {})


def test_a_new_submission_forgets_how_the_cell_ended_before(tmp_path, forgetful):
    entry = entry_of(tmp_path, "a")
    log_event(tmp_path, "submitted", cells=["a"], jobs={})
    log_event(tmp_path, "ended", cell="a", code=3)
    assert (state_of(tmp_path, entry).state, state_of(tmp_path, entry).reason) == ("failed", "exit status 3")
    log_event(tmp_path, "submitted", cells=["a"], jobs={"a": "7_0"})
    again = state_of(tmp_path, entry)
    assert (again.state, again.job) == ("killed", "7_0")
    assert again.reason.startswith("ended without a word")


def test_a_cancelled_cell_that_then_ends_was_cancelled(tmp_path, forgetful):
    entry = entry_of(tmp_path, "a")
    log_event(tmp_path, "submitted", cells=["a"], jobs={})
    log_event(tmp_path, "cancelled", cells=["a"])
    log_event(tmp_path, "ended", cell="a", code=-15)
    assert state_of(tmp_path, entry).state == "cancelled"
    (tmp_path / "a" / "summary.json").write_text(json.dumps({"status": "failed", "reason": "out of memory"}))
    assert (state_of(tmp_path, entry).state, state_of(tmp_path, entry).reason) == ("failed", "out of memory")  # of its own accord
    (tmp_path / "a" / "summary.json").write_text(json.dumps({"status": "interrupted"}))
    assert state_of(tmp_path, entry).state == "cancelled"


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("PENDING", "queued", "Priority"),
        ("REQUEUED", "queued", "Priority"),
        ("RUNNING", "running", ""),
        ("COMPLETING", "running", ""),
        ("CANCELLED by 0", "cancelled", ""),
        ("NODE_FAIL", "failed", "SLURM: node fail"),
    ],
)
def test_what_slurm_says(tmp_path, monkeypatch, word, state, reason):
    known = slurm.JobState(word, "n1", "Priority")
    monkeypatch.setattr(slurm, "query", lambda jobs: dict.fromkeys(jobs, known))
    entry = entry_of(tmp_path, "a", kind="slurm")
    log_event(tmp_path, "submitted", cells=["a"], jobs={"a": "7_0"})
    found = state_of(tmp_path, entry)
    assert (found.state, found.reason, found.node) == (state, reason, "n1")


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "killed by signal 9 (out of memory?)"), (-11, "killed by signal 11"), (0, "exit status 0")]
)
def test_how_a_process_ended(tmp_path, forgetful, code, words):
    entry = entry_of(tmp_path, "a")
    log_event(tmp_path, "submitted", cells=["a"], jobs={})
    log_event(tmp_path, "ended", cell="a", code=code)
    assert state_of(tmp_path, entry).reason == words


def test_progress_of_a_journal(tmp_path):
    key = "eval/arithmetic/pass_at_1"
    lines = [{key: 0.25, "seconds/evaluation": 1.0}, {"reward/mean": 0.5, "seconds/rollout": 2.0, "seconds/update": 4.0}]
    lines += [{"reward/mean": 0.75, key: 0.5, "seconds/sync": 8.0}]
    text = "".join(json.dumps({"step": 3 * number, "time": 0, "metrics": metrics}) + "\n" for number, metrics in enumerate(lines))
    (tmp_path / "journal.jsonl").write_text(text)
    step, reward, passes, seconds = progress(tmp_path, ("arithmetic", "gsm8k"), len(text))
    assert (step, reward, seconds) == (6, 0.75, 15.0)
    assert {task: values[:2] for task, values in passes.items()} == {"arithmetic": (0.25, 0.5)}
    assert progress(tmp_path, ("arithmetic",), 0) == (0, None, {}, 0)


def test_a_cell_that_waits_for_another_grid_is_not_taken_for_running_there(tmp_path, monkeypatch):
    """Two grids that hold each other's cell as busy would otherwise each say that the other runs it."""
    monkeypatch.setattr(slurm, "query", lambda jobs: {job: slurm.JobState("PENDING") for job in jobs})
    claim(tmp_path / "a", make_config())
    for found, elsewhere in (("new", "queued"), ("busy", None)):
        log_event(tmp_path, "submitted", cells=["a"], jobs={"a": "7_0"})
        state_of(tmp_path, entry_of(tmp_path, "a", found, kind="slurm"))
        assert running_elsewhere(tmp_path / "a") == elsewhere


SETUP = [
    "export A=1",
    "if false; then",
    "false",
    "else",
    'echo "else $A"',
    "fi",
    "for i in 1 2; do",
    "echo $i",
    "done",
    "# a comment",
    "false || true",
]


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        (SETUP, 0, "else 1\n1\n2\npython\n"),
        (["cat <<X", "no 'end'", "X", "echo a \\", "b"], 0, "no 'end'\na b\npython\n"),
        ([*SETUP, "module load cuda", "echo on"], 127, "else 1\n1\n2\nerror: hydra.launcher.setup: module load cuda (exit status 127)\n"),
        (["cd /nowhere && echo 'it''s $A'"], 1, "error: hydra.launcher.setup: cd /nowhere && echo 'it''s $A' (exit status 1)\n"),
        (["if true; then", "(exit 3)", "fi"], 3, "error: hydra.launcher.setup: if true; then; (exit 3); fi (exit status 3)\n"),
    ],
)
def test_a_line_of_the_setup_that_fails_ends_the_job_and_is_named(lines, status, said):
    script = "\n".join([*slurm.setup_lines(lines), "echo python"])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, said), done.stderr


def test_the_line_of_the_setup_is_the_reason_of_its_cell(tmp_path, forgetful):
    entry = entry_of(tmp_path, "a")
    log_event(tmp_path, "submitted", cells=["a"], jobs={"a": "7_0"})
    log = slurm.log_path(Grid(tmp_path, tmp_path, tmp_path, {}, "", []), "7_0")
    log.parent.mkdir()
    log.write_text("module: command not found\nerror: hydra.launcher.setup: module load cuda (exit status 127)\n")
    cell = state_of(tmp_path, entry)
    assert (cell.state, cell.reason) == ("failed", "hydra.launcher.setup: module load cuda (exit status 127)")
    (tmp_path / "a" / "run.json").write_text(json.dumps({"job": "7_0"}))  # the run itself began, so the line is its own
    assert "setup" not in state_of(tmp_path, entry).reason


@pytest.fixture
def sent(monkeypatch):
    """What cancelling sends: signals to processes, and commands to SLURM."""
    signals = []
    monkeypatch.setattr(launch.os, "kill", lambda pid, number: signals.append((pid, number)))
    monkeypatch.setattr(slurm, "cancel", lambda running, waiting: signals.extend([*running, *waiting]))
    return signals


def test_cancelling_twice_asks_each_cell_once(tmp_path, monkeypatch, sent):
    """A second signal would end a cell before it has saved."""
    entries = [entry_of(tmp_path, name) for name in ("here", "job", "waits")]
    grid = Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", entries)
    log_event(tmp_path, "submitted", cells=["here", "job", "waits"], jobs={"job": "7_0", "waits": "7_1"})
    known = {"7_0": slurm.JobState("RUNNING"), "7_1": slurm.JobState("PENDING")}
    monkeypatch.setattr(slurm, "query", lambda jobs: known)
    (tmp_path / "here" / "run.json").write_text(json.dumps({"pid": 123, "host": host_name()}))
    with open(tmp_path / "here" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert launch.cancel(grid) == "asked 2 running cells to save and end, took 1 out of the queue"
        assert sent == ["7_0", "7_1", (123, signal.SIGTERM)]
        known["7_1"] = slurm.JobState("CANCELLED")
        again = launch.cancel(grid).splitlines()
    assert len(sent) == 3
    assert again == [
        "asked 0 running cells to save and end, took 0 out of the queue",
        f"here: asked before, still saving; to end it without saving: kill -9 123 (on {host_name()})",
        "job: asked before, still saving; to end it without saving: scancel 7_0",
    ]
    log_event(tmp_path, "submitted", cells=["job"], jobs={"job": "8_0"})  # resumed, so it may be asked again
    known["8_0"] = slurm.JobState("RUNNING")
    assert launch.cancel(grid).startswith("asked 1 running") and sent[3:] == ["8_0"]


def test_cancelling_cells_of_another_machine_asks_nobody(tmp_path, forgetful, sent):
    entry = entry_of(tmp_path, "away")
    (tmp_path / "away" / "run.json").write_text(json.dumps({"pid": 123, "host": "elsewhere"}))
    with open(tmp_path / "away" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(2):
            with pytest.raises(UserError, match="away runs on elsewhere: cancel it there"):
                launch.cancel(Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [entry]))
    assert not sent


def test_states_from_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_lines", lambda *command: [])  # a SLURM that has forgotten everything
    names = ("done", "broken", "stopped", "killed", "cancelled", "saved", "new", "gone")
    grid = Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [entry_of(tmp_path, name) for name in names])
    grid.write()
    log_event(tmp_path, "submitted", cells=[n for n in names if n != "new"], jobs={"gone": "999999_0"})
    for name, status in (("done", "collapsed"), ("broken", "failed"), ("stopped", "interrupted"), ("saved", "interrupted")):
        (tmp_path / name / "summary.json").write_text(json.dumps({"status": status, "reason": "why"}))
    (tmp_path / "killed" / "run.json").write_text('{"host": "n7"}')
    log_event(tmp_path, "ended", cell="killed", code=-9)
    log_event(tmp_path, "cancelled", cells=["cancelled", "saved"])
    log_event(tmp_path, "ended", cell="saved", code=0)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"time": "cut sho')
    found = {cell.entry.name: (cell.state, cell.reason) for cell in cell_states(read_grid(tmp_path))}
    assert found["done"][0] == "collapsed"
    assert found["broken"] == ("failed", "why")
    assert found["stopped"] == ("interrupted", "why")
    assert found["killed"] == ("failed", "killed by signal 9 (out of memory?)")
    assert (found["cancelled"][0], found["saved"][0]) == ("cancelled", "cancelled")
    assert found["new"] == ("new", "")
    assert found["gone"][0] == "killed"  # a job that nobody remembers
    with hold_launcher(tmp_path), lock_run(tmp_path / "new", make_config()):
        assert states(tmp_path)["new"] == "running"
    log_event(tmp_path, "submitted", cells=["stopped"], jobs={})
    assert states(tmp_path)["stopped"] == "interrupted"
    with hold_launcher(tmp_path):
        assert states(tmp_path)["stopped"] == "queued"


def test_slurm_is_asked_only_for_what_has_not_finished(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(slurm, "query", lambda jobs: asked.extend(jobs) or {})
    grid = Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [entry_of(tmp_path, name) for name in ("done", "broken")])
    log_event(tmp_path, "submitted", cells=["done", "broken"], jobs={"done": "1_0", "broken": "1_1"})
    for name, status in (("done", "finished"), ("broken", "failed")):
        (tmp_path / name / "summary.json").write_text(json.dumps({"status": status}))
    assert [cell.state for cell in cell_states(grid)] == ["finished", "failed"]
    assert asked == ["1_1"]


def test_waiting_outlives_a_slurm_that_does_not_answer(tmp_path, monkeypatch):
    """Its controller is away for three looks: the queued cell looks killed, and is queued again after that."""
    answers = iter([False, False, False, True, True, True])
    seen = []

    def look(self):
        seen.append("queued" if len(seen) in (0, 4) else "killed")
        return [type("Cell", (), {"state": seen[-1]})]

    monkeypatch.setattr(launch, "SLURM_POLL_S", 0.0)
    monkeypatch.setattr(launch.Display, "refresh", look)
    monkeypatch.setattr(slurm, "answers", lambda: next(answers))
    launch.wait(Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [entry_of(tmp_path, "a")]))
    assert seen == ["queued", "killed", "killed", "killed", "queued", "killed", "killed", "killed"]  # the last look closes the display


def test_a_launcher_of_another_machine_is_not_signalled_here(tmp_path, monkeypatch):
    grid = Grid(tmp_path, tmp_path, tmp_path / "code", {}, "", [entry_of(tmp_path, "a")])
    monkeypatch.setattr("mth.grid.record.host_name", lambda: "n7")
    with hold_launcher(tmp_path), pytest.raises(UserError, match="its launcher runs on n7; cancel it there"):
        launch.cancel(grid)


def test_slurm_answers_are_read(monkeypatch):
    answers = {
        "squeue": ["7_0|RUNNING|n1|None", "7_1|PENDING||Resources"],
        "sacct": ["7_[2-3,5%4]|PENDING|None assigned", "8|CANCELLED by 0|n2"],
    }
    monkeypatch.setattr(slurm, "_lines", lambda name, *rest: answers[name])
    found = slurm.query(["7_0", "7_1", "7_3", "7_5", "8", "9"])
    assert {job: (s.state, s.node, s.active) for job, s in found.items()} == {
        "7_0": ("RUNNING", "n1", True),
        "7_1": ("PENDING", "", True),
        "7_3": ("PENDING", "", True),
        "7_5": ("PENDING", "", True),
        "8": ("CANCELLED", "n2", False),
    }
    assert found["7_1"].reason == "Resources"
