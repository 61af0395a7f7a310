"""Grids on one machine: planning, frozen inputs, identity, what a second command adds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mth.config.cells import cells_of, read_command
from mth.config.identity import identity
from mth.foundations import provenance
from mth.foundations.errors import UserError
from mth.foundations.signals import listen
from mth.grid import launch, local, slurm
from mth.grid.devices import slots
from mth.grid.memory import facts_of_models, memory_estimate
from mth.grid.placement import place_cells
from mth.grid.record import Grid, read_grid
from mth.grid.show import table
from mth.runs import lock as runs
from mth.runs.lock import lock_run
from mth.runs.search import find_runs
from tests.conftest import claim, make_config
from tests.grid.launched import SMALL, entry_of, mth


def test_cells_of_a_command_line_with_numbers_ranges_and_an_experiments_own_sweep(tmp_path, monkeypatch):
    many, cells, _ = read_command(["-m", "sparsity=99,99.9", "mask_seed=range(0,3)"])
    assert many and len(cells) == 6
    assert cells[0] == ["sparsity.percent=99", "mask_seed=0"]
    assert read_command(["sparsity=99"])[0] is False
    conf = tmp_path / "conf"
    subprocess.run(["cp", "-r", provenance.PACKAGE.parent / "conf", conf], check=True)
    (conf / "experiment" / "swept.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      sparsity.percent: 99,100\n"
    )
    monkeypatch.setattr("mth.config.compose.conf_dir", lambda: conf)
    many, cells, _ = read_command(["experiment=swept", "mask_seed=0,1"])
    assert many and len(cells) == 4
    with pytest.raises(UserError, match=r"sparsity.percent=100 .*in the cell sparsity.percent=100"):
        cells_of(["experiment=swept"])


def test_interpolations_on_the_command_line_are_resolved_in_every_cell():
    arguments = [
        "-m",
        "train.steps=300,400",
        "eval.every=${train.steps}",
        "hydra/launcher=slurm",
        "hydra.launcher.timeout_min=${train.steps}",
    ]
    cells = cells_of(arguments)
    assert [(cell.config.eval.every, cell.launcher["timeout_min"]) for cell in cells] == [(300, 300), (400, 400)]


def test_plan_launches_nothing_and_knows_what_is_there(tmp_path):
    config = cells_of([*SMALL, "mask_seed=1"])[0].config
    claim(tmp_path / "multirun" / "old", config)
    (tmp_path / "multirun" / "old" / "summary.json").write_text('{"status": "finished"}')
    claim(tmp_path / "multirun" / "half", cells_of([*SMALL, "mask_seed=2"])[0].config)
    before = sorted(tmp_path.rglob("*"))
    shown = mth("grid", "plan", "mask_seed=0,1,2", *SMALL, cwd=tmp_path).stdout
    assert sorted(tmp_path.rglob("*")) == before
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert lines["0-s99.0-m0"].endswith("new") and "17,881" in lines["0-s99.0-m0"] and "mask_seed=0" in lines["0-s99.0-m0"]
    assert lines["1-s99.0-m1"].endswith("finished")
    assert lines["2-s99.0-m2"].endswith("continued")
    assert "32 rollouts to generate" in shown


def test_memory_estimate_grows_with_what_it_depends_on():
    def estimate(*overrides):
        (cell,) = cells_of(list(overrides))
        return memory_estimate(cell.config, facts_of_models(cell.config.model, {}))

    sparse, full = estimate("sparsity=99"), estimate("sparsity=0")
    assert sparse["ticket"] == 17_881 * 20
    assert full["ticket"] == 1_791_104 * 16
    assert sparse["weights"] == full["weights"] == 1_791_104 * 4
    assert estimate("sparsity=99", "optimizer=sgd")["ticket"] == 17_881 * 12
    assert estimate("train.micro_batch_tokens=32768")["work"] > sparse["work"]
    bf16 = ("sparsity=0", "model.dtype=bfloat16", "rollout.batch_size=1")
    masked, dense = (estimate(*bf16, f"optimizer.clip_norm={norm}")["work"] for norm in ("masked", "dense"))
    assert dense - masked == 1_791_104 * 4  # fp32 sums of all gradients


def test_identity_decides_what_is_run_again(tmp_path):
    cells = cells_of(["-m", "mask_seed=0,1,2", *SMALL])
    root = tmp_path / "multirun"
    for name, cell, status in (("a", cells[0], "finished"), ("b", cells[1], "failed")):
        claim(root / name, cell.config)
        (root / name / "summary.json").write_text(json.dumps({"status": status}))
    assert [(e.found, e.dir) for e in place_cells(cells, root / "new", root)] == [
        ("finished", root / "a"),
        ("continued", root / "b"),
        ("new", root / "new" / "2-s99.0-m2"),
    ]
    with lock_run(root / "b", cells[1].config):
        assert [e.found for e in place_cells(cells, root / "new", root)] == ["finished", "busy", "new"]
    moved = cells_of(["-m", "mask_seed=0", *SMALL, "tracker=mlflow", "run_dir=elsewhere", "checkpoints.every=1", "rollout.url=http://n7:1"])
    assert place_cells(moved, root / "new", root)[0].found == "finished"
    forced = cells_of(["-m", "mask_seed=0", *SMALL, "force=true"])
    assert place_cells(forced, root / "new", root)[0].found == "new"
    twins = cells_of(["-m", "lr=5e-3,0.005", *SMALL])
    assert [e.found for e in place_cells(twins, root / "new", root)] == ["finished"]
    other = cells_of(["-m", "mask_seed=9", *SMALL])
    claim(root / "new" / "0-s99.0-m9", make_config(mask_seed=5))
    with pytest.raises(UserError, match="belongs to another configuration"):
        place_cells(other, root / "new", root)


def test_a_second_command_in_a_grids_folder_adds_its_cells_and_runs_only_those(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, started = tmp_path / "multirun" / "grown", []

    def fake(grid, entries, detach):
        started.append([entry.name for entry in entries])
        for entry in entries:
            claim(entry.dir, cells_of([*entry.overrides])[0].config)
            entry.dir.joinpath("journal.jsonl").write_text(
                json.dumps({"step": 2, "time": 1, "metrics": {"eval/arithmetic/pass_at_1": 0.5}}) + "\n"
            )
            (entry.dir / "summary.json").write_text(
                '{"status": "finished"}' if "mask_seed=0" in entry.overrides else '{"status": "interrupted"}'
            )

    monkeypatch.setattr(launch, "start", fake)
    with pytest.raises(UserError, match=r"1 of 2 cells did not finish.*\n  1-s99.0-m1: interrupted"):
        launch.launch(cells_of(["-m", "mask_seed=0,1", *SMALL]), folder)
    forward = ["-m", "mask_seed=7,0", *SMALL]
    with pytest.raises(UserError, match="1 of 2 cells did not finish"):
        launch.launch(cells_of(forward), folder)
    assert launch.launch(cells_of(["-m", "mask_seed=0", *SMALL]), folder) == [0.5]
    launch.launch(cells_of(["-m", "mask_seed=0", "lr=1e-3", *SMALL]), folder)  # another cell of the same number, level and seed
    assert started == [["0-s99.0-m0", "1-s99.0-m1"], ["0-s99.0-m7"], [], ["0-s99.0-m0-2"]]
    assert [(e.name, e.dir.name) for e in read_grid(folder).cells] == [
        ("1-s99.0-m1", "1-s99.0-m1"),
        ("0-s99.0-m7", "0-s99.0-m7"),
        ("0-s99.0-m0", "0-s99.0-m0"),
        ("0-s99.0-m0-2", "0-s99.0-m0-2"),
    ]


def test_a_continued_cell_takes_todays_tracker_and_a_grid_of_two_launchers_starts_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (before,) = cells_of(["-m", "mask_seed=0", *SMALL])
    claim(tmp_path / "old" / "a", before.config)
    now = cells_of(["-m", "mask_seed=0", *SMALL, "tracker.uri=http://n7:5000"])
    grid = launch.prepare(now, tmp_path / "new", tmp_path)
    assert "uri: http://n7:5000" in (tmp_path / "old" / "a" / "config.yaml").read_text()
    calls = []
    monkeypatch.setattr(slurm, "submit", lambda grid, entries: calls.append(("slurm", [e.name for e in entries])))
    monkeypatch.setattr(local, "run", lambda grid, entries, watch: calls.append(("local", [e.name for e in entries])))
    entries = [entry_of(tmp_path, "a"), entry_of(tmp_path, "b", kind="slurm")]
    for entry in entries:
        (entry.dir / "config.yaml").touch()
    launch.start(grid, entries, detach=False)
    assert calls == [("slurm", ["b"]), ("local", ["a"])]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    claim(tmp_path, make_config())

    def refuse(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert not runs.is_locked(tmp_path)
    with pytest.raises(UserError, match="has no locks"):
        runs.lock_folder(tmp_path)


def test_runs_are_found_by_identity_only(tmp_path):
    config, other = make_config(), make_config(optimizer={"beta2": 0.9})  # differ only in what is not compared first
    claim(tmp_path / "a", config)
    claim(tmp_path / "b", other)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("{cut")
    assert find_runs([tmp_path, tmp_path], [config])[0] == {identity(config): [tmp_path / "a"]}


def test_a_snapshot_is_the_package_and_is_made_once(tmp_path):
    place = provenance.snapshot(tmp_path / "code")
    assert provenance.snapshot(tmp_path / "code") == place
    assert [p.name for p in (tmp_path / "code").iterdir()] == [place.name]
    code = "import mth.foundations.provenance as p; print(p.PACKAGE); print(p.code_version()['commit'])"
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    said = subprocess.run([sys.executable, "-c", code], cwd=provenance.PACKAGE.parent, env=environment, capture_output=True, text=True)
    package, commit = said.stdout.split()
    assert Path(package) == place / "mth"
    assert commit == str(provenance.code_version()["commit"])


def test_cells_find_the_frozen_code_first_and_keep_what_the_user_has_on_the_path(tmp_path, monkeypatch):
    grid = Grid(tmp_path, tmp_path, provenance.snapshot(tmp_path / "code"), {}, "", [])
    monkeypatch.setenv("PYTHONPATH", f"{provenance.PACKAGE.parent}{os.pathsep}/of/a/module")
    code = "import mth, sys; print(mth.__file__); print('/of/a/module' in sys.path)"
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | local.frozen(grid), capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(grid.code / "mth" / "__init__.py"), "True"]


def test_a_grid_can_be_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    Grid(old, tmp_path, old / "code", {}, "", [entry_of(old, "a")]).write()
    old.rename(new)
    assert read_grid(new).cells[0].dir == new / "a"
    with pytest.raises(UserError, match="not the folder of a grid"):
        read_grid(tmp_path)


def test_tables_drop_empty_columns():
    assert table(("cell", "state", "job", "reason"), [("a", "ok", "", ""), ("bb", "failed", "", "x y")]).splitlines() == [
        "cell  state   reason",
        "a     ok",
        "bb    failed  x y",
    ]


def test_places_share_cores_and_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slots(None, [], 8) == [{}]
    assert slots(4, [], 8) == [{"OMP_NUM_THREADS": "2"}] * 4
    assert [s["CUDA_VISIBLE_DEVICES"] for s in slots(None, ["2", "5"], 8)] == ["2", "5"]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in slots(3, ["0", "1"], 8)] == ["0", "1", "0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert slots(4, [], 8) == [{}] * 4, "the user's own number of threads was replaced"


def test_signals_inside_and_outside_a_job(monkeypatch):
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    try:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        requests = listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (requests.stop, requests.received, requests.requeue) == (True, signal.SIGTERM, False)
        called = []
        signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        requests = listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (requests.save, requests.stop) == (True, False)  # SLURM kills or requeues by itself
        os.kill(os.getpid(), signal.SIGUSR2)
        assert (requests.stop, requests.requeue, called) == (True, True, [])
        requests.previous_handler(signal.SIGUSR2, None)
        assert called == [signal.SIGUSR2]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
