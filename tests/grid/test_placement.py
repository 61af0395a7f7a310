"""Where a run goes: grids and single runs decide alike, and a user is told."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from mth.config.stored import to_plain
from mth.foundations.errors import UserError
from mth.grid.placement import place_run
from mth.runs.folder import RunFolder
from mth.runs.lock import lock_folder
from mth.runs.summary import Summary
from tests.conftest import claim, make_config

SMALL = ["task=arithmetic", "task.train_rows=32", "train.steps=1", "train.batch_size=8", "rollout.group_size=4", "rollout.max_tokens=16"]
SMALL += ["eval.samples=8", "tracker=none"]


def ended(folder, config, status="finished"):
    claim(folder, config)
    RunFolder(folder).write_summary(Summary(status=status, steps=config.train.steps))
    return folder


def test_a_run_is_new_continued_or_finished_wherever_it_lies(tmp_path):
    config, new = make_config(), tmp_path / "today"
    assert place_run(config, new, tmp_path).found == "new"
    half = ended(tmp_path / "half", config, "interrupted")
    assert (place_run(config, new, tmp_path).found, place_run(config, new, tmp_path).dir) == ("continued", half)
    assert place_run(make_config(mask_seed=1), new, tmp_path).found == "new"
    done = ended(tmp_path / "done", config)
    assert (place_run(config, new, tmp_path).found, place_run(config, new, tmp_path).dir) == ("finished", done)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.yaml").write_text("{cut")
    assert place_run(config, new, tmp_path).dir == done


def test_a_given_folder_that_holds_a_run_decides_alone(tmp_path):
    config = make_config()
    ended(tmp_path / "done", config)
    mine = ended(tmp_path / "mine", config, "interrupted")
    assert (place_run(config, mine, tmp_path).found, place_run(config, mine, tmp_path).dir) == ("continued", mine)
    with pytest.raises(UserError, match=r"another configuration: mask_seed \(0, here 5\)"):
        place_run(make_config(mask_seed=5), mine, tmp_path)


def test_force_starts_anew_in_a_folder_of_its_own(tmp_path):
    mine = ended(tmp_path / "mine", make_config())
    place = place_run(make_config(force=True), mine, tmp_path)
    assert (place.found, place.dir) == ("new", tmp_path / "mine-2")


def test_a_run_at_work_is_refused_and_resume_needs_something_to_continue(tmp_path):
    config = make_config(resume=True)
    with pytest.raises(UserError, match="no unfinished run"):
        place_run(config, tmp_path / "new", tmp_path)
    claim(tmp_path / "a", config)
    assert place_run(config, tmp_path / "new", tmp_path).dir == tmp_path / "a"
    with lock_folder(tmp_path / "a"), pytest.raises(UserError, match="at work in"):
        place_run(config, tmp_path / "new", tmp_path)


def test_the_same_single_command_again_runs_nothing_and_says_so(tmp_path):
    def train(*more):
        done = subprocess.run([sys.executable, "-m", "mth.train", *SMALL, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = train()
    (folder,) = (path.parent for path in tmp_path.rglob("summary.json"))
    again = train()
    assert f"finished before, in {folder}" in again
    results = [[line for line in said.splitlines() if line.startswith("arithmetic ")] for said in (first, again)]
    assert results[0] == results[1] != []
    assert len(list(tmp_path.rglob("run.json"))) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())] == []  # Hydra's empty folder is gone
    train("force=true")
    assert len(list(tmp_path.rglob("run.json"))) == 2


@pytest.mark.parametrize("more", [[], ["resume=true"]])
def test_a_run_in_an_empty_folder_leaves_that_folder_in_place(tmp_path, more):
    command = [sys.executable, "-m", "mth.train", *SMALL, "run_dir=mine", *more]
    made = tmp_path.stat().st_ino
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, tmp_path.stat().st_ino) == (2 if more else 0, made), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if more else ["mine"])


def test_old_runs_are_found_whatever_their_keys_without_effect(tmp_path):
    """Folders of older versions hold values that have no effect: a mask seed of `magnitude`, the sparsity of a whole layer, the device."""
    cases = (
        ({"mask": {"family": "magnitude"}}, {"mask_seed": 10}),
        ({"mask": {"family": "last_layer", "budget": "whole_layer"}}, {"mask_seed": 10, "sparsity": {"percent": 99.9}}),
        ({}, {"model": {"device": "cpu"}, "optimizer": {"momentum": 0.9}}),
    )
    for number, (sections, idle) in enumerate(cases):
        config, root = make_config(**sections), tmp_path / str(number)
        old = ended(root / "old", config)
        stored = to_plain(config)
        for key, value in idle.items():
            stored[key] = stored[key] | value if isinstance(value, dict) else value
        OmegaConf.save(OmegaConf.create(stored), old / "config.yaml")
        assert (place_run(config, root / "new", root).found, place_run(config, root / "new", root).dir) == ("finished", old)
        claim(old, config)  # it can also be continued
