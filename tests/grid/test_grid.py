"""Grids on one machine: planning, frozen inputs, identity, failures, signals, detached launchers, journals sent later."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mth.config.cells import cells_of, read_command
from mth.config.identity import identity
from mth.config.launchers import launcher_settings
from mth.foundations import provenance
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.foundations.signals import listen
from mth.grid import launch, local, slurm
from mth.grid.devices import slots
from mth.grid.memory import facts_of_models, memory_estimate
from mth.grid.placement import place_cells
from mth.grid.record import Grid, GridCell, hold_launcher, log_event, read_grid
from mth.grid.show import table
from mth.grid.state import cell_states
from mth.runs import lock as runs
from mth.runs.journal import read_journal
from mth.runs.lock import lock_run
from mth.runs.search import find_runs
from mth.runs.trackers.mlflow_store import default_uri, mlflow_client
from tests.conftest import begin, claim, make_config, model_with_damaged_weights

SMALL = [
    "task=arithmetic",
    "task.train_rows=32",
    "train.steps=2",
    "train.batch_size=8",
    "rollout.group_size=4",
    "rollout.max_tokens=16",
    "eval.samples=8",
    "tracker=none",
]
LONG = [*SMALL, "train.steps=100000", "eval.every=0", "checkpoints.every=0", "collapse.window=1000000"]


def command(module, *arguments):
    return [sys.executable, "-m", f"mth.{module}", *map(str, arguments)]


def mth(module, *arguments, cwd, check=True):
    result = subprocess.run(command(module, *arguments), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def states(folder):
    return {cell.entry.name: cell.state for cell in cell_states(read_grid(folder))}


def entry_of(folder, name, found="new", **launcher):
    settings = launcher_settings({"kind": launcher.get("kind", "local")})
    (folder / name).mkdir(parents=True, exist_ok=True)
    return GridCell(name, folder / name, [], name, settings, found, 5, ["arithmetic"])


# Before anything runs


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


# States, from files


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


# Real processes


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
