"""Grids that run on this machine: failures, signals, detached launchers, journals sent later."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from mth.foundations.paths import TINY_MODEL
from mth.grid.record import Grid, read_grid
from mth.runs.journal import read_journal
from mth.runs.trackers.mlflow_store import default_uri, mlflow_client
from tests.conftest import begin, model_with_damaged_weights
from tests.grid.launched import LONG, SMALL, command, entry_of, mth, states, until


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two cells side by side, one of which cannot load its weights."""
    folder = tmp_path_factory.mktemp("user")
    paths = f"model.path={TINY_MODEL},{model_with_damaged_weights(folder / 'broken')}"
    arguments = ["-m", paths, "model.lr_table=tiny", *SMALL, "tracker=mlflow", "tracker.uri=http://127.0.0.1:9", "hydra.launcher.jobs=2"]
    result = mth("train", *arguments, f"run_dir={folder}/multirun/two", cwd=folder, check=False)
    return folder / "multirun" / "two", result


def test_a_failing_cell_is_named_and_the_rest_completes(finished):
    grid, result = finished
    assert result.returncode == 2
    assert "1 of 2 cells did not finish" in result.stderr
    assert "weights cannot be loaded" in result.stderr
    assert f"log: {Path('multirun/two/1-s99.0-m0/log.txt')}" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in (grid / "1-s99.0-m0" / "log.txt").read_text()
    assert list(states(grid).values()) == ["finished", "failed"]
    assert json.loads((grid / "environment.json").read_text())["packages"]["torch"]
    assert json.loads((grid / "0-s99.0-m0" / "run.json").read_text())["code"] == read_grid(grid).version
    assert "MLflow at http://127.0.0.1:9 does not answer" in result.stderr
    assert "1 finished, 1 failed, 0 tracked" in result.stdout
    assert f"not everything is in MLflow at http://127.0.0.1:9: python -m mth.grid sync {grid}" in result.stdout


def test_sync_replays_journals_and_replaying_again_changes_nothing(finished):
    grid, _ = finished
    uri = default_uri(grid.parent)
    for _ in range(2):
        assert "1 runs sent" in mth("grid", "sync", grid, f"tracker.uri={uri}", cwd=grid).stdout
        client = mlflow_client(uri)
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        sent = client.get_metric_history(run.info.run_id, "train/arithmetic/reward/mean")
        journal = [(e.step, e.metrics["reward/mean"]) for e in read_journal(grid / "0-s99.0-m0") if "reward/mean" in e.metrics]
        assert [(m.step, m.value) for m in sent] == journal
        assert run.info.status == "FINISHED"
        assert run.data.tags["sweep"] == "two"
        assert run.data.params["active_parameters"] == "17881"
    dead = mth("grid", "sync", grid, cwd=grid, check=False)
    assert dead.returncode == 2
    assert "1 of 1 runs were not sent" in dead.stderr


def test_ctrl_c_saves_what_runs_and_a_killed_launcher_leaves_it_running(tmp_path):
    folder = tmp_path / "multirun" / "long"
    launcher = begin(command("train", "-m", "mask_seed=0,1", *LONG, f"run_dir={folder}"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    first, second = folder / "0-s99.0-m0", folder / "1-s99.0-m1"
    until(lambda: len(read_journal(first)) > 2, "the first steps")
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGINT
    assert f"mth.grid resume {Path('multirun/long')}" in said
    assert json.loads((first / "summary.json").read_text())["status"] == "interrupted"
    steps = len(read_journal(first))
    assert (first / "checkpoints" / f"step_{steps - 1:06d}.safetensors").is_file()
    assert list(states(folder).values()) == ["interrupted", "new"]

    launcher = begin(command("grid", "resume", folder), cwd=folder)
    until(lambda: len(read_journal(first)) > steps, "steps after the resume")
    pid = json.loads((first / "run.json").read_text())["pid"]
    assert Path(f"/proc/{pid}/cwd").resolve() == tmp_path  # where the grid's command was given, for relative paths in it
    other = mth("grid", "resume", folder, cwd=tmp_path, check=False)
    assert other.returncode == 0 and "0 of 2 cells to run" in other.stdout
    launcher.kill()
    launcher.wait()
    assert states(folder)[first.name] == "running"
    reached = len(read_journal(first))
    until(lambda: len(read_journal(first)) > reached, "steps without a launcher")
    assert "asked 1 running cells" in mth("grid", "cancel", folder, cwd=tmp_path).stdout
    until(lambda: states(folder)[first.name] == "cancelled", "the end of the cell")
    assert [e.step for e in read_journal(first)] == list(range(len(read_journal(first))))
    assert not (second / "journal.jsonl").exists()


def test_ctrl_c_twice_does_not_wait_for_the_cells_which_save_all_the_same(tmp_path):
    folder = tmp_path / "multirun" / "twice"
    launcher = begin(command("train", "-m", "mask_seed=0,1", *LONG, f"run_dir={folder}"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    first = folder / "0-s99.0-m0"
    until(lambda: len(read_journal(first)) > 1, "the first step")
    launcher.send_signal(signal.SIGINT)
    while "send it again to end at once" not in launcher.stderr.readline():
        pass
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said and "saves and ends by itself" in said
    until(lambda: states(folder) == {first.name: "interrupted", "1-s99.0-m1": "new"}, "the end of the cell")


def test_detach_returns_and_the_grid_runs_on(tmp_path):
    folder = tmp_path / "multirun" / "detached"
    said = mth("train", "-m", "mask_seed=0", *SMALL, "detach=true", f"run_dir={folder}", cwd=tmp_path).stdout
    assert "in the background" in said
    mth("grid", "watch", folder, cwd=tmp_path)
    until(lambda: list(states(folder).values()) == ["finished"], "the detached cell")


def test_commands_say_what_is_wrong_in_one_line(tmp_path):
    grid = tmp_path / "grid"
    Grid(grid, tmp_path, grid / "code", {}, "", [entry_of(grid, "a")]).write()
    for arguments, message in (
        (["status", tmp_path], "is not the folder of a grid"),
        (["status"], "give the grid's folder"),
        (["plot", tmp_path], "no such command; choose one of plan"),
        (["sync", tmp_path], "no run with a journal.jsonl below it"),
        (["plan", "sparsity=100"], "sparsity.percent=100 must be in [0, 100)"),
        (["plan", "task.path=null,gone.jsonl"], "task.path=gone.jsonl does not exist (in the cell task.path=gone.jsonl)"),
        (["plan", "eval.paths.gsm8k=/gone"], "eval.paths.gsm8k=/gone does not exist"),
        (["resume", grid, "lr=1"], "lr=1: a grid's cells are as they were launched"),
        (["resume", grid, "b"], "b is no cell of this grid"),
        (["resume", grid, "hydra.launcher.job=2"], "Key 'job' not in 'LocalLauncher'"),
        (["sync", grid, "tracker.url=x"], "tracker.url=x: sync takes the grid's folder and tracker.uri=URI"),
    ):
        result = mth("grid", *arguments, cwd=tmp_path, check=False)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert "plan" in mth("grid", "--help", cwd=tmp_path).stdout
