"""Cells that are forked from a resident process: the same bits as cells alone, failures that stay with their cell, a resident that is gone."""

import json
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from mth.config.cells import cells_of
from mth.foundations.paths import TINY_MODEL
from mth.grid import launch, local, resident
from mth.grid.record import read_events, read_grid
from mth.grid.resident import QUIET, Fork, Job, refuse_threads, serve
from mth.grid.state import cell_states
from mth.runs.folder import RunFolder
from mth.runs.journal import read_journal
from tests.conftest import model_with_damaged_weights
from tests.grid.launched import SMALL, mth

MACHINE = ("seconds/", "tokens_per_second", "peak_memory")  # metrics of the machine, not of the run
TASKS = ["-m", "task=arithmetic,alphabet_sort", "model.lr_table=tiny", *SMALL[1:], "checkpoints.every=2", "hydra.launcher.jobs=1"]


def run_of(cell_dir):
    """What a run computed: its metrics by step, and the tensors of its last checkpoint."""
    steps = [(e.step, {k: v for k, v in e.metrics.items() if not k.startswith(MACHINE)}, e.rewards) for e in read_journal(cell_dir)]
    tensors = load_file(max((cell_dir / "checkpoints").iterdir()))
    return steps, {name: tensor.tobytes() for name, tensor in tensors.items()}


def finished_runs(folder):
    """What the finished cells of a grid computed, by task."""
    cells = [cell.entry.dir for cell in cell_states(read_grid(folder)) if cell.state == "finished"]
    return {RunFolder(cell_dir).config().task.name: run_of(cell_dir) for cell_dir in cells}


def test_forked_cells_have_the_bits_of_cells_alone_also_after_a_cell_that_failed(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # libraries start threads of their own only where there are several cores
    broken = model_with_damaged_weights(tmp_path / "broken")
    together, apart = tmp_path / "multirun" / "together", tmp_path / "multirun" / "apart"
    result = mth("train", *TASKS, f"model.path={broken},{TINY_MODEL}", f"run_dir={together}", cwd=tmp_path, check=False)
    assert "2 of 4 cells did not finish" in result.stderr, result.stderr
    mth("train", *TASKS, f"model.path={TINY_MODEL}", "hydra.launcher.resident=false", "force=true", f"run_dir={apart}", cwd=tmp_path)
    assert "cannot fork" not in (together / "resident.log").read_text()
    assert not (apart / "resident.log").exists()
    forked, alone = finished_runs(together), finished_runs(apart)
    assert forked.keys() == alone.keys() == {"arithmetic", "alphabet_sort"}
    assert forked == alone
    failed = [cell for cell in cell_states(read_grid(together)) if cell.state == "failed"]
    assert all("weights cannot be loaded" in cell.reason for cell in failed) and len(failed) == 2
    assert all("Traceback" in RunFolder(cell.entry.dir).log_file.read_text() for cell in failed)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A grid of three cells that is prepared to run in this process; what `local.start` returned is in `started`."""
    monkeypatch.chdir(tmp_path)
    cells = cells_of(["-m", "mask_seed=0,1,2", *SMALL, "train.steps=20", "eval.every=0", "hydra.launcher.jobs=1"])
    prepared = launch.prepare(cells, tmp_path / "multirun" / "grid", tmp_path / "multirun")
    started, start = [], local.start

    def spy(*arguments):
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(local, "start", spy)
    return prepared, started


def ends(grid):
    return {event["cell"]: event["code"] for event in read_events(grid.folder) if event["event"] == "ended"}


def test_a_killed_fork_takes_only_itself_along(grid):
    grid, started = grid
    first = grid.cells[0]

    def watch():
        if first.name not in ends(grid) and len(read_journal(first.dir)) > 2:
            os.kill(json.loads((first.dir / "run.json").read_text())["pid"], signal.SIGKILL)

    local.run(grid, grid.cells, watch)
    assert [type(process) for process in started] == [Fork] * 3
    assert ends(grid) == {cell.name: code for cell, code in zip(grid.cells, (-9, 0, 0), strict=True)}
    assert [(cell.state, cell.reason) for cell in cell_states(grid)] == [
        ("failed", "killed by signal 9 (out of memory?)"),
        ("finished", ""),
        ("finished", ""),
    ]


def test_without_its_resident_a_cell_goes_on_and_the_next_ones_are_processes_of_their_own(grid):
    grid, started = grid
    first = grid.cells[0]

    def watch():
        if len(read_journal(first.dir)) > 2:
            started[0].resident.process.kill()

    local.run(grid, grid.cells, watch)
    assert [isinstance(process, Fork) for process in started] == [True, False, False]
    assert [cell.state for cell in cell_states(grid)] == ["finished"] * 3


def test_a_cell_that_its_resident_never_started_is_started_by_the_launcher(grid):
    grid, started = grid

    def watch():
        if len(started) == 1:
            started[0].resident.process.kill()  # while it imports

    local.run(grid, grid.cells[:2], watch)
    assert [isinstance(process, Fork) for process in started] == [True, False, False]
    assert [cell.state for cell in cell_states(grid)] == ["finished", "finished", "new"]


def test_cells_with_vllm_and_grids_of_one_cell_have_no_resident(grid, monkeypatch):
    grid, started = grid
    local.run(grid, grid.cells[:1], lambda: None)
    assert not isinstance(started[0], Fork)
    config = cells_of(["rollout=vllm"])[0].config
    monkeypatch.setattr(RunFolder, "config", lambda self: config)
    monkeypatch.setattr(local.subprocess, "Popen", lambda *arguments, **settings: "process")

    class NoResident:
        gone = False

    assert local.start(grid, grid.cells[1], {}, NoResident()) == "process"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_library_that_asks_for_a_gpu_does_not_start_cuda(monkeypatch, quiet):
    started = []
    for key, value in QUIET.items() if quiet else ():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # asks the driver's library for management
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: started.append("CUDA") or 1, raising=False)
    assert torch.cuda.is_available() and started == ([] if quiet else ["CUDA"])


def test_a_process_with_threads_is_not_forked():
    fresh = [sys.executable, "-c", "from mth.grid.resident import refuse_threads; refuse_threads()"]
    assert subprocess.run(fresh, cwd=Path(__file__).parents[2], env=os.environ | QUIET).returncode == 0
    fresh[-1] = f"import os; plain = os.listdir; os.listdir = lambda path: [*plain(path), '999999999']; {fresh[-1]}"  # has ended meanwhile
    assert subprocess.run(fresh, cwd=Path(__file__).parents[2], env=os.environ | QUIET).returncode == 0
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    with pytest.raises(SystemExit, match="each cell gets a process of its own"):
        refuse_threads()
    waiting.set()
    thread.join()


def test_a_fork_that_fails_ends_the_resident_with_the_reason(grid, monkeypatch, capsys):
    grid, _ = grid
    monkeypatch.setattr(resident.gc, "freeze", lambda: None)
    monkeypatch.setattr(resident, "load", lambda config: None)
    monkeypatch.setattr(resident, "refuse_threads", lambda: None)
    monkeypatch.setattr(resident.os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError("no process is left")))
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send((0, Job(grid.cells[0].dir, grid.folder, {})))
        assert serve(theirs) is None
    assert capsys.readouterr().out == "cannot fork (no process is left); each cell gets a process of its own\n"
