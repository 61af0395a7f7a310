"""Grids on a real SLURM, started on this machine by cluster.sh: arrays, failures, kills, time limits, preemption, lost nodes and launchers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mth.foundations.paths import TINY_MODEL
from mth.grid.record import read_events, read_grid
from mth.grid.slurm import log_path
from mth.runs.journal import read_journal
from mth.runs.trackers.mlflow_store import default_uri, mlflow_client
from tests.conftest import begin, model_with_damaged_weights
from tests.grid import launched
from tests.grid.launched import states

REPOSITORY = Path(__file__).parents[2]
mth = partial(launched.mth, OMP_NUM_THREADS="1")
until = partial(launched.until, seconds=180)
SCRIPT = Path(__file__).with_name("cluster.sh")
SMALL = [
    "task=arithmetic",
    "task.train_rows=32",
    "train.steps=2",
    "train.batch_size=8",
    "rollout.group_size=4",
    "rollout.max_tokens=16",
    "eval.samples=8",
    "hydra/launcher=slurm",
    "hydra.launcher.mem_gb=2",
    "hydra.launcher.cpus_per_task=1",
]
LONG = [
    *SMALL,
    "train.steps=100000",
    "eval.every=0",
    "checkpoints.every=0",
    "tracker=none",
    "lr=1e-6",
    "hydra.launcher.cpus_per_task=2",
    "detach=true",
]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """SLURM_CONF of a running cluster. Installing Debian packages is left to CI and to developers who ask for it."""
    wanted = os.environ.get("CI") or os.environ.get("MTH_SLURM") or (shutil.which("slurmctld") and shutil.which("mariadbd"))
    if os.geteuid() != 0 or not shutil.which("apt-get") or not wanted:
        pytest.skip("needs root on Debian; MTH_SLURM=1 installs and starts SLURM (tests/slurm/cluster.sh)")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, timeout=600)
    assert started.returncode == 0, started.stdout + started.stderr
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield
    subprocess.run(["scancel", "--me"], check=False)
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=120)
    del os.environ["SLURM_CONF"]


def sacct(folder):
    """State in SLURM's accounting of the last job of every cell."""
    jobs = {}
    for event in read_events(folder):
        jobs |= event.get("jobs", {})
    listed = subprocess.run(["sacct", "-n", "-X", "-P", "-o", "JobID,State"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split("|") for line in listed.splitlines())
    return {name: found.get(job, "").split()[:1] for name, job in jobs.items()}


def last_step(run_dir):
    journal = read_journal(run_dir)
    return journal[-1].step if journal else -1


def starts(run_dir):
    path = run_dir / "run.json"
    return json.loads(path.read_text())["starts"] if path.exists() else 0


@pytest.fixture(scope="module")
def grid(cluster, tmp_path_factory):
    """2 x 3 cells of the embedded model, run to the end."""
    folder = tmp_path_factory.mktemp("user")
    mth("train", "-m", "sparsity=99,99.9", "mask_seed=0,10,42", *SMALL, f"run_dir={folder}/multirun/first", cwd=folder)
    return folder / "multirun" / "first"


def test_a_grid_is_one_array_tracked_flat_with_one_base_evaluation(grid):
    assert states(grid) == {f"{i}-s{s}-m{m}": "finished" for i, (s, m) in enumerate((s, m) for s in (99.0, 99.9) for m in (0, 10, 42))}
    (submitted,) = read_events(grid)
    assert len({job.split("_")[0] for job in submitted["jobs"].values()}) == 1
    until(lambda: set(map(tuple, sacct(grid).values())) == {("COMPLETED",)}, "accounting")
    uri = default_uri(grid.parent)
    client = mlflow_client(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted((r.data.params["sparsity"], r.data.params["mask_seed"]) for r in runs) == [
        (s, m) for s in ("99.0", "99.9") for m in ("0", "10", "42")
    ]
    assert {r.data.tags["sweep"] for r in runs} == {"first"}
    assert not any("mlflow.parentRunId" in r.data.tags for r in runs)
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert len(list((grid / "base").glob("*.json"))) == 1
    logs = [path.read_text() for path in (grid / "slurm").glob("*_log.out")]
    assert sum("evaluation read from" in log for log in logs) == 5
    bases = {json.dumps(read_journal(entry.dir)[0].metrics["eval/arithmetic/reward"]) for entry in read_grid(grid).cells}
    assert len(bases) == 1


def test_a_second_launch_skips_everything_and_a_larger_one_runs_the_rest(grid):
    before = {path: path.stat().st_mtime_ns for path in grid.rglob("summary.json")}
    again = mth("train", "-m", "sparsity=99,99.9", "mask_seed=0,10,42", *SMALL, cwd=grid.parents[1])
    assert "6 finished before" in again.stdout
    assert "submitted" not in again.stdout
    planned = mth("grid", "plan", "sparsity=99,99.9", "mask_seed=0,10,42,7", *SMALL, cwd=grid.parents[1]).stdout
    assert planned.count("finished") == 7  # six cells and the line of totals
    assert "2 new; 32 rollouts" in planned
    assert {path: path.stat().st_mtime_ns for path in grid.rglob("summary.json")} == before


def test_a_job_requeued_after_its_end_does_nothing(grid):
    entry = read_grid(grid).cells[0]
    job = read_events(grid)[0]["jobs"][entry.name]
    before = (entry.dir / "summary.json").stat().st_mtime_ns, last_step(entry.dir)
    subprocess.run(["scontrol", "requeue", job], check=True)
    until(lambda: "already finished" in log_path(read_grid(grid), job).read_text(), "the end of the requeued job")
    until(lambda: sacct(grid)[entry.name] == ["COMPLETED"], "accounting")
    assert ((entry.dir / "summary.json").stat().st_mtime_ns, last_step(entry.dir)) == before
    assert starts(entry.dir) == 1


def test_cells_of_different_resources_are_arrays_of_their_own_and_leave_the_queue_when_cancelled(cluster, tmp_path):
    folder = tmp_path / "multirun" / "shapes"
    shapes = ["train.steps=5,7", "mask_seed=0,1", "hydra.launcher.timeout_min=${train.steps}", "hydra.launcher.mem_gb=1.5"]
    held = ["tracker=none", "detach=true", "+hydra.launcher.additional_parameters.hold=true", f"run_dir={folder}"]
    mth("train", "-m", *SMALL, *shapes, *held, cwd=tmp_path)
    first, second = (list(event["jobs"].values()) for event in read_events(folder))
    assert [{job.split("_")[0] for job in jobs} for jobs in (first, second)] == [{first[0].split("_")[0]}, {second[0].split("_")[0]}]
    listed = subprocess.run(["squeue", "-h", "-r", "-o", "%i|%l|%m|%c"], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == sorted([*(f"{job}|5:00|1.50G|1" for job in first), *(f"{job}|7:00|1.50G|1" for job in second)])
    assert "took 4 out of the queue" in mth("grid", "cancel", folder, cwd=tmp_path).stdout
    until(lambda: set(states(folder).values()) == {"cancelled"}, "an empty queue")


def test_a_line_of_the_setup_that_fails_ends_the_job_with_that_line(cluster, tmp_path):
    folder = tmp_path / "multirun" / "setup"
    setup = "hydra.launcher.setup=['export A=1','module load cuda']"
    result = mth("train", "-m", "mask_seed=0", *SMALL, "tracker=none", setup, f"run_dir={folder}", cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert "0-s99.0-m0: failed: hydra.launcher.setup: module load cuda (exit status 127)" in result.stderr
    assert not (folder / "0-s99.0-m0" / "run.json").exists()


def test_edits_while_jobs_queue_change_nothing(cluster, tmp_path):
    """A working copy is edited between submission and start: its code would now fail, its configuration would now take more steps."""
    for part in ("mth", "conf", "hydra_plugins"):
        shutil.copytree(REPOSITORY / part, tmp_path / "copy" / part, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "copy" / "multirun" / "edited"
    arguments = ["-m", "mask_seed=0,1", *SMALL, "detach=true", "+hydra.launcher.additional_parameters.hold=true", f"run_dir={folder}"]
    mth("train", *arguments, cwd=tmp_path / "copy", PYTHONPATH=str(tmp_path / "copy"))
    assert set(states(folder).values()) == {"queued"}
    waiting = mth("train", *arguments, cwd=tmp_path / "copy", PYTHONPATH=str(tmp_path / "copy"))
    assert "2 queued or running already" in waiting.stdout
    (tmp_path / "copy" / "mth" / "trainer.py").write_text("raise RuntimeError('edited')\n")
    recipe = tmp_path / "copy" / "conf" / "recipe" / "tiny+arithmetic.yaml"
    recipe.write_text(recipe.read_text().replace("lr", "nothing"))
    subprocess.run(["scontrol", "release", f"jobname=mth-{folder.name}"], check=True)
    until(lambda: set(states(folder).values()) == {"finished"}, "the edited grid")
    assert {last_step(entry.dir) for entry in read_grid(folder).cells} == {2}


def test_failures_are_listed_the_rest_completes_and_resume_runs_what_is_left(cluster, tmp_path):
    """One cell cannot load its weights, one is killed with SIGKILL, and the launcher is killed as well."""
    models = f"model.path={TINY_MODEL},{model_with_damaged_weights(tmp_path / 'broken')}"
    folder = tmp_path / "multirun" / "failing"
    arguments = [
        *("-m", models, "model.lr_table=tiny", "mask_seed=0,1", *SMALL, f"run_dir={folder}"),
        *("task=alphabet_sort", "train.steps=25", "collapse.window=1000", "checkpoints.every=1", "rollout.max_tokens=48"),
    ]
    launcher = begin([sys.executable, "-m", "mth.train", *arguments], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    until(lambda: (folder / "grid.json").exists(), "the grid")
    killed = folder / "0-s99.0-m0"
    until(lambda: last_step(killed) >= 2, "a few steps")
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    os.kill(json.loads((killed / "run.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: not {"queued", "running"} & set(states(folder).values()), "the jobs, which need no launcher")
    found = states(folder)
    assert [found[name] for name in sorted(found)] == ["failed", "finished", "failed", "failed"]
    until(lambda: set(map(tuple, sacct(folder).values())) == {("COMPLETED",), ("FAILED",)}, "accounting")
    table = mth("grid", "status", folder, cwd=tmp_path).stdout
    assert "weights cannot be loaded" in table
    assert "SLURM: failed" in table
    # An empty file: SLURM's commands wait a minute each for one that is missing.
    forgotten = mth("grid", "status", folder, cwd=tmp_path, SLURM_CONF="/dev/null").stdout
    assert "killed" in forgotten and "finished" in forgotten
    broken = next(path for path in (folder / "slurm").glob("*_log.out") if "weights cannot be loaded" in path.read_text())
    assert "Traceback" in broken.read_text()

    resumed = mth("grid", "resume", folder, "hydra.launcher.timeout_min=30", cwd=tmp_path, check=False)
    assert resumed.returncode == 2
    assert "2 of 4 cells did not finish" in resumed.stderr
    assert resumed.stderr.count("weights cannot be loaded") == 2
    assert states(folder)["0-s99.0-m0"] == "finished"
    assert [entry.step for entry in read_journal(killed)] == list(range(26))
    assert starts(killed) == 2
    assert starts(folder / "1-s99.0-m1") == 1


def test_signals_time_limits_preemption_and_lost_nodes_requeue_and_resume(cluster, tmp_path):
    """Four endless cells, one to a node: SIGUSR2, a time limit, a job of a higher partition, a node set down. Then all are cancelled."""
    limited, low = tmp_path / "multirun" / "limited", tmp_path / "multirun" / "low"
    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30"]
    mth("train", "-m", "mask_seed=0", *LONG, *limits, f"run_dir={limited}", cwd=tmp_path)
    mth("train", "-m", "mask_seed=1,2,3", *LONG, "hydra.launcher.partition=low", f"run_dir={low}", cwd=tmp_path)
    by_limit = read_grid(limited).cells[0].dir
    by_signal, by_preemption, by_node = (entry.dir for entry in read_grid(low).cells)
    everyone = (by_limit, by_signal, by_preemption, by_node)
    until(lambda: all(last_step(run) >= 2 for run in everyone), "the first steps of all four")
    runs = {run: json.loads((run / "run.json").read_text()) for run in everyone}
    assert len({run["host"] for run in runs.values()}) == 4
    subprocess.run(["scancel", "--signal=USR2", runs[by_signal]["job"]], check=True)
    urgent = ["sbatch", "-p", "high", "-c", "2", "-w", runs[by_preemption]["host"], "-o", "/dev/null", "--wrap", "sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    node = runs[by_node]["host"]
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    until(lambda: not Path(f"/proc/{runs[by_node]['pid']}").exists(), "the end of the job on the lost node")
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)  # unless it came back by itself

    until(lambda: all(starts(run) == 2 for run in everyone), "four requeues", seconds=240)
    for run in (by_limit, by_signal, by_preemption):  # these were asked to save
        (log,) = (path for path in (run.parent / "slurm").glob("*_log.out") if f"-m{run.name.rsplit('m', 1)[1]}-" in path.read_text())
        until(lambda log=log: "continuing after step" in log.read_text(), f"the continuation of {run}")
        saved = int(log.read_text().rsplit("continuing after step", 1)[1].split()[0])
        assert saved >= 2
        until(lambda run=run, saved=saved: last_step(run) > saved, "steps after the requeue")
        steps = [entry.step for entry in read_journal(run)]
        assert steps == list(range(len(steps)))
    until(lambda: last_step(by_node) >= 1, "steps of the cell whose node was lost")
    for grid in (limited, low):
        assert set(states(grid).values()) == {"running"}
        assert "took 0 out of the queue" in mth("grid", "cancel", grid, cwd=tmp_path).stdout
    until(lambda: {*states(limited).values(), *states(low).values()} == {"cancelled"}, "four cells that save and end", seconds=60)
    for run in everyone:
        assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
        assert (run / "checkpoints" / f"step_{last_step(run):06d}.safetensors").is_file()
