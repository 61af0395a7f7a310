"""The state of a cell from what launchers, runs and SLURM leave, in the order in which they left it."""

import json

import pytest

from mth.grid import slurm
from mth.grid.record import Grid, log_event
from mth.grid.state import cell_states, progress, running_elsewhere
from tests.conftest import claim, make_config
from tests.grid.test_grid import entry_of


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
