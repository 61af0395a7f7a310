"""Folders of runs and grids: nobody gets another's, nothing is lost when commands start together, and what was deleted is said."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mth.config.cells import Cell, cells_of
from mth.config.stored import read_yaml, to_yaml
from mth.foundations.errors import UserError
from mth.foundations.files import temporary_path
from mth.grid import launch, local, worker
from mth.grid.placement import Place, new_folder, place_run
from mth.grid.record import hold_launcher, log_event, read_events, read_grid
from mth.grid.state import cell_states
from mth.runs.checkpoint import checkpoint_path
from mth.runs.folder import RunFolder
from mth.runs.lock import lock_folder
from mth.runs.search import find_runs
from mth.runs.summary import Summary
from mth.training.loop import train
from tests.conftest import claim, make_config

SMALL = ["task=arithmetic", "task.train_rows=32", "train.batch_size=8", "rollout.group_size=4", "tracker=none"]


def mth(cwd, *arguments):
    return subprocess.run([sys.executable, "-m", "mth.train", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def together(count, work):
    """The results of `work(0)`, `work(1)`, ... that start at the same moment, each in a thread of its own."""
    start = threading.Barrier(count)

    def one(number):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_twenty_commands_that_start_together_get_twenty_folders(tmp_path):
    end = threading.Barrier(20)

    def command(number):
        with new_folder(tmp_path / "2026-01-01" / "12-00-00") as folder:
            end.wait()  # nobody's folder is free before the last has one
            if number % 2:
                (folder / "config.yaml").touch()
            return folder

    folders = together(20, command)
    assert len(set(folders)) == 20
    assert {path.name for path in folders} == {"12-00-00", *(f"12-00-00-{number}" for number in range(2, 21))}
    assert sorted(path for path in folders if path.exists()) == sorted(folders[1::2])  # what stayed empty is removed


def test_a_start_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError), new_folder(tmp_path / "multirun" / "2026-01-01" / "12-00-00"):
        raise UserError("bad input")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["run_dir="], ["run_dir=' '"], ["hydra.run.dir=elsewhere"]])
def test_a_folder_that_is_not_named_is_refused(tmp_path, arguments):
    done = mth(tmp_path, *arguments)
    assert done.returncode == 2
    assert "run_dir=" in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == (["elsewhere"] if "hydra" in arguments[0] else [])  # Hydra made it


def test_grids_that_start_together_in_one_folder_keep_all_their_cells(tmp_path):
    """Five commands of four cells each, whose names are the same in all of them."""
    made = cells_of(["-m", *SMALL, f"mask_seed={','.join(map(str, range(20)))}"])
    grids = [[replace(cell, name=f"cell-{number}") for number, cell in enumerate(made[first : first + 4])] for first in range(0, 20, 4)]
    folder = tmp_path / "grid"
    prepared = together(5, lambda number: launch.prepare(grids[number], folder, tmp_path))
    cells = read_grid(folder).cells
    assert len({cell.identity for cell in cells}) == len({cell.dir for cell in cells}) == len(cells) == 20
    for grid, asked in zip(prepared, grids, strict=True):
        for cell, wanted in zip(grid.cells, asked, strict=True):
            assert RunFolder(cell.dir).config().mask_seed == wanted.config.mask_seed
    assert len(list((folder / "code").iterdir())) == 1


def test_a_grid_that_cannot_be_placed_leaves_no_folder(tmp_path):
    (cell,) = cells_of(["-m", *SMALL])
    claim(tmp_path / "old", cell.config)
    record = RunFolder(tmp_path / "old").record()
    RunFolder(tmp_path / "old").add_to_record(contents={key: dict.fromkeys(names, "other") for key, names in record["contents"].items()})
    with pytest.raises(UserError, match="has changed since the run"):
        launch.prepare([cell], tmp_path / "grid", tmp_path)
    assert not (tmp_path / "grid").exists()


def test_the_beginning_of_a_run_is_not_copied_over_a_run_at_work(tmp_path):
    """Another command was placed in the same folder, and has started since."""
    short, config = tmp_path / "short", make_config(train={"steps": 5})
    claim(short, make_config(train={"steps": 3}))
    RunFolder(short).write_summary(Summary(status="finished", steps=3))
    RunFolder(short).journal_file.write_text('{"step": 3, "time": 0, "metrics": {}}\n')
    checkpoint_path(short, 3).parent.mkdir()
    checkpoint_path(short, 3).write_bytes(b"")
    mine = Place("extended", tmp_path / "long", short)
    mine.prepare(config)
    journal = RunFolder(tmp_path / "long").journal_file
    assert journal.read_text() == RunFolder(short).journal_file.read_text()
    further = journal.read_text() + '{"step": 4, "time": 0, "metrics": {}}\n'
    journal.write_text(further)
    mine.prepare(config)  # started and stopped since
    assert journal.read_text() == further
    shutil.rmtree(tmp_path / "long" / "checkpoints")
    with lock_folder(tmp_path / "long"):
        mine.prepare(config)
    assert journal.read_text() == further
    with pytest.raises(UserError, match="another configuration: mask_seed"):
        Place("new", tmp_path / "long").prepare(make_config(train={"steps": 5}, mask_seed=1))


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A prepared grid of two cells, of which nothing has run, and the cells that are started."""
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(local, "run", lambda grid, cells, watch: started.extend(cell.name for cell in cells))
    return launch.prepare(cells_of(["-m", *SMALL, "mask_seed=0,1"]), tmp_path / "grid", tmp_path), started


def test_a_deleted_cell_folder_is_made_again_and_stops_no_other(grid, capsys):
    prepared, started = grid
    stored = read_yaml(prepared.cells[0].dir / "config.yaml")
    shutil.rmtree(prepared.cells[0].dir)
    launch.start(prepared, prepared.cells, detach=False)
    assert started == ["0-s99.0-m0", "1-s99.0-m1"]
    assert "0-s99.0-m0: its folder was deleted; it starts anew" in capsys.readouterr().out
    assert read_yaml(prepared.cells[0].dir / "config.yaml") == stored
    started.clear()
    shutil.rmtree(prepared.cells[1].dir)
    prepared.cells[1].overrides[:] = ["task=nowhere"]  # as after a change of the code
    launch.start(prepared, prepared.cells, detach=False)
    assert started == ["0-s99.0-m0"]
    assert "1-s99.0-m1 is left out: its folder" in capsys.readouterr().err
    log_event(prepared.folder, "submitted", cells=["1-s99.0-m1"], jobs={})
    log_event(prepared.folder, "ended", cell="1-s99.0-m1", code=0)
    assert [(cell.state, cell.reason) for cell in cell_states(prepared)][1] == ("failed", "its folder was deleted")


@pytest.mark.parametrize("detach", [False, True])
def test_deleted_code_is_refused_with_the_command_that_freezes_it_again(grid, detach):
    prepared, started = grid
    shutil.rmtree(prepared.folder / "code")
    with pytest.raises(
        UserError, match=r"code/\w+ was deleted, and the cells would run today's code; put it back, or type .* run_dir=grid"
    ):
        launch.start(prepared, prepared.cells, detach)
    assert started == []
    with pytest.raises(UserError, match="froze was deleted"):  # a job that was queued
        worker.run_cell(prepared.cells[0].dir, prepared.folder)


@pytest.mark.parametrize("detach", [False, True])
def test_cells_of_a_second_command_are_named_while_the_first_is_at_work(grid, detach):
    prepared, started = grid
    with hold_launcher(prepared.folder), pytest.raises(UserError, match=r"mth\.grid resume grid 0-s99\.0-m0 1-s99\.0-m1"):
        launch.start(prepared, prepared.cells, detach)
    assert started == []


DAMAGED_EVENTS = [
    b'{"event": "submitted"}',
    b"[1]",
    b"\xff\xfe",
    b'"text"',
    b"{cut",
    b'{"event": ["x"]}',
    b'{"event": "ended", "cell": 5, "code": 0}',
]


def test_damaged_lines_of_events_are_left_out_and_those_after_them_count(tmp_path):
    log_event(tmp_path, "submitted", cells=["a"], jobs={})
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b"\n".join([*DAMAGED_EVENTS, b"[" * 100_000, b""]))
    log_event(tmp_path, "cancelled", cells=["a"])
    assert [event["event"] for event in read_events(tmp_path)] == ["submitted", "cancelled"]


@pytest.mark.parametrize("change", [{"cells": 5}, {"cells": [{"name": "a"}]}, {"cells": [{"dir": "a", "unknown": 1}]}, {"cwd": None}])
def test_a_damaged_record_of_a_grid_is_one_line(grid, change):
    prepared, _ = grid
    path = prepared.folder / "grid.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="is damaged, or of a newer version"):
        read_grid(prepared.folder)


BOMBS = {
    "aliases": "a: &a [x, x]\n"
    + "".join(f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n" for old, new in zip("abcdefghijklm", "bcdefghijklmn", strict=True)),
    "an alias to itself": "a: &a [*a]\n",
    "flow": "a: " + "[" * 100_000,
    "lists": "- " * 50_000,
    "blocks": "".join(" " * depth + "a:\n" for depth in range(1000)),
    "size": "a: " + "x" * 2**20,
    "bytes": b"\xff\xfe\x00",
}


def test_a_config_that_would_take_for_ever_stops_no_command(tmp_path):
    config = make_config()
    for name, text in BOMBS.items():
        path = tmp_path / name / "config.yaml"
        path.parent.mkdir()
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match="is damaged"):
            read_yaml(path)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "config.yaml").write_text(to_yaml(config))
    assert [list(found.values()) for found in find_runs([tmp_path], [config])] == [[[tmp_path / "good"]], []]


def contents_of(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_without_its_checkpoints_is_never_touched(tmp_path):
    config, folder = make_config(train={"steps": 1}, eval={"every": 0}), tmp_path / "run"
    train(config, folder, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    before = contents_of(folder)
    for place in (place_run(config, folder, tmp_path), place_run(config, tmp_path / "new", tmp_path)):
        assert (place.found, place.dir, place.to_do) == ("finished", folder, False)
        place.prepare(config)
    with pytest.raises(
        UserError, match="is finished, and its last checkpoint is gone"
    ):  # a process that waited for the folder until it had finished
        train(config, folder, tmp_path)
    grid = launch.prepare([Cell((), "0", config, {"kind": "local"})], tmp_path / "grid", tmp_path)
    assert launch.pending_cells(grid) == []
    assert contents_of(folder) == before


def test_what_killed_processes_left_is_removed_when_a_run_or_grid_starts_again(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = temporary_path(Path("journal.jsonl")).name.replace(str(os.getpid()), str(dead.pid))
    places = [tmp_path / "run" / name for name in (".", "checkpoints", "samples", "spectrum")]
    for place in (*places, tmp_path / "grid", tmp_path / "grid" / "code"):
        place.mkdir(parents=True)
        (place / left).write_text("half")
    claim(tmp_path / "run", make_config())
    launch.prepare(cells_of(["-m", *SMALL]), tmp_path / "grid", tmp_path)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_journal_that_is_damaged_everywhere_stops_neither_status_nor_a_search(tmp_path):
    claim(tmp_path / "multirun" / "run", make_config())
    RunFolder(tmp_path / "multirun" / "run").journal_file.write_bytes(
        b"\xff\n[1]\n5\nnull\n" + b"[" * 100_000 + b'\n{"step": 1, "time": 0, "metrics": {"a": {}}}\n'
    )
    grid = launch.prepare([Cell((), "0", make_config(), {"kind": "local"})], tmp_path / "grid", tmp_path / "multirun")
    (state,) = cell_states(grid)
    assert (state.state, state.step, state.entry.found) == ("killed", 0, "continued")
