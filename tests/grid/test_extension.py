"""A run with more steps starts where a finished run with fewer ended, and computes the same as if it had taken all of them itself."""

import json
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from mth.config.cells import Cell, cells_of
from mth.config.identity import identity
from mth.config.stored import to_plain
from mth.foundations.files import read_json
from mth.grid.__main__ import plan
from mth.grid.launch import prepare
from mth.grid.placement import place_cells
from mth.runs.checkpoint import checkpoints_of, load_checkpoint
from mth.runs.journal import read_journal, without_evaluation
from mth.runs.search import find_runs
from tests.conftest import claim, make_config

SMALL = ["task=arithmetic", "task.train_rows=64", "train.batch_size=16", "rollout.group_size=4", "rollout.max_tokens=24", "eval.samples=16"]
SMALL += ["eval.every=2", "checkpoints.every=0", "tracker=none", "algorithm=as_run"]


def train(cwd, *arguments):
    command = [sys.executable, "-m", "mth.train", *arguments, *SMALL]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def computed(folder):
    timed = ("seconds", "tokens_per_second", "peak_memory")
    return [(e.step, {key: value for key, value in e.metrics.items() if not key.startswith(timed)}) for e in read_journal(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four steps at one go."""
    cwd = tmp_path_factory.mktemp("whole")
    train(cwd, "train.steps=4", "run_dir=whole")
    return cwd / "whole"


@pytest.mark.parametrize("grid", [False, True])
def test_extended_run_equals_a_run_of_all_steps(whole, tmp_path, grid):
    train(tmp_path, "train.steps=3", "run_dir=multirun/short")  # evaluates step 3, which the whole run does not
    long = tmp_path / "multirun/long"
    if grid:
        said = train(tmp_path, "-m", "train.steps=4", "hydra.launcher.jobs=1", "run_dir=multirun/long")
        assert "1 extend shorter runs" in said
        (long,) = (path.parent for path in long.glob("*/run.json"))
    else:
        assert "multirun/short" in train(tmp_path, "train.steps=4", "run_dir=multirun/long")
    assert computed(long) == computed(whole)
    short = read_journal(tmp_path / "multirun/short")
    assert read_journal(long)[:4] == [*short[:3], without_evaluation(short[3])] != short
    assert read_json(long / "beginning.json")["steps"] == 3
    ours, theirs = (load_checkpoint(checkpoints_of(folder)[-1]) for folder in (long, whole))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in ours.tensors)
    assert read_json(long / "summary.json")["final"] == read_json(whole / "summary.json")["final"]


def folder_of(path, config, status="finished", checkpoint=True):
    claim(path, config)
    steps = config.train.steps
    (path / "summary.json").write_text(json.dumps({"status": status, "steps": steps}))
    (path / "journal.jsonl").write_text("")
    if checkpoint:
        (path / "checkpoints").mkdir()
        (path / f"checkpoints/step_{steps:06d}.safetensors").write_bytes(b"")
    return path


def steps(count, **sections):
    return make_config(train={"steps": count}, **sections)


def test_only_a_finished_beginning_is_extended(tmp_path):
    wanted = steps(9)

    def found(config=wanted):
        return find_runs([tmp_path], [config])[1].get(identity(config), [None])[0]

    folder_of(tmp_path / "longer", steps(12))
    folder_of(tmp_path / "same", wanted)
    folder_of(tmp_path / "other rate", steps(5, lr={"value": 1e-3}))
    folder_of(tmp_path / "other batch", make_config(train={"steps": 5, "batch_size": 32}))
    folder_of(tmp_path / "broken off", steps(6), status="interrupted")
    folder_of(tmp_path / "swept away", steps(7), checkpoint=False)
    assert found() is None
    short = folder_of(tmp_path / "short", steps(3))
    assert found() == short
    longest = folder_of(tmp_path / "longest", steps(5))
    assert found() == longest
    keeping = {"spectrum": {"mode": "exact"}}
    folder_of(tmp_path / "keeps gradients", steps(3, **keeping))
    assert found(steps(9, **keeping)) is None


def cell(config):
    return Cell((), "1-cell", config, {"kind": "local"})


def test_a_grid_plans_extensions_before_it_makes_them_and_force_makes_none(tmp_path):
    short = folder_of(tmp_path / "short", steps(3))
    (entry,) = place_cells([cell(steps(9))], tmp_path / "grid", tmp_path)
    assert (entry.found, entry.beginning) == ("extended", str(short))
    assert not (tmp_path / "grid").exists()
    (forced,) = place_cells([cell(steps(9, force=True))], tmp_path / "grid", tmp_path)
    assert (forced.found, forced.beginning) == ("new", "")
    grid = prepare([cell(steps(9))], tmp_path / "grid", tmp_path)
    assert [path.name for path in checkpoints_of(grid.cells[0].dir)] == ["step_000003.safetensors"]
    assert OmegaConf.load(grid.cells[0].dir / "config.yaml") == OmegaConf.create(to_plain(steps(9)))


def test_a_plan_counts_the_steps_that_are_to_come(tmp_path, capsys, monkeypatch):
    arguments = ["task=arithmetic", "train.batch_size=16", "rollout.group_size=4"]
    short = folder_of(tmp_path / "multirun/short", cells_of(["-m", *arguments, "train.steps=3"])[0].config)
    (short / "journal.jsonl").write_text('{"step": 3, "time": 0, "metrics": {}}\n')
    monkeypatch.chdir(tmp_path)
    plan([*arguments, "train.steps=9"])
    assert "1 extended; 96 rollouts to generate" in capsys.readouterr().out
