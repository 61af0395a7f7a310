"""What may never change: published identities, seeds, masks, keys, file formats, modules started by name. Recorded with commit 9095324."""

import hashlib
import importlib
import json
from pathlib import Path

import pytest

from mth.config.cells import cells_of
from mth.config.identity import identity
from mth.config.launchers import LAUNCHERS
from mth.config.options import options
from mth.config.pretrain_schema import PretrainConfig
from mth.config.schema import Config
from mth.config.stored import flat, from_plain, to_plain
from mth.foundations.seeds import derive_seed
from mth.models.shapes import parameter_shapes
from mth.tickets.indices import mask_sha256
from mth.tickets.masks import sample_mask

DATA, RESULTS = Path(__file__).parent / "data", Path(__file__).parents[1] / "docs" / "results"
PINS = json.loads((DATA / "pins.json").read_text())


@pytest.mark.parametrize("folder", PINS["identities"])
def test_identities_of_published_runs(folder):
    runs = [json.loads(line) for line in (RESULTS / folder / "runs.jsonl").read_text().splitlines()]
    assert {run["name"]: identity(from_plain(run["config"])) for run in runs} == PINS["identities"][folder]


def test_seeds():
    def number(text):
        return int(text) if text.isdigit() else text

    assert {name: derive_seed(*map(number, name.split(":"))) for name in PINS["seeds"]} == PINS["seeds"]


@pytest.mark.parametrize("name", PINS["masks"])
def test_masks_of_the_real_shapes(name):
    tiny = name == "tiny"
    shapes = parameter_shapes(from_plain({"model": {"name": name, "init": "pretrained" if tiny else "random"}, "lr": {"value": 1.0}}).model)
    for mask, digest in PINS["masks"][name].items():
        percent, seed = mask.split(":")
        assert mask_sha256(shapes, sample_mask(shapes, "random", float(percent), int(seed))) == digest


def test_every_key_and_its_default():
    assert flat(to_plain(Config())).items() >= PINS["keys"].items()
    assert flat(to_plain(PretrainConfig())).items() >= PINS["pretrain_keys"].items()
    for name, keys in PINS["launcher_keys"].items():
        assert flat(to_plain(LAUNCHERS[name]())).items() >= keys.items()


def test_every_option_of_every_group():
    for group, names in PINS["options"].items():
        if group != "hydra":
            assert set(options(group)) >= set(names)


@pytest.mark.parametrize("command", [*PINS["experiments"], *PINS["commands"]])
def test_cells_of_experiments_and_commands(command):
    arguments = command.replace("'x y'", "x_y").split()
    cells = cells_of([argument.replace("x_y", "'x y'") for argument in arguments])
    if command in PINS["commands"]:
        found = [[cell.name, identity(cell.config), cell.launcher.get("timeout_min", cell.launcher.get("jobs"))] for cell in cells]
        assert found == PINS["commands"][command]
        return
    digest = hashlib.sha256(" ".join(identity(cell.config) for cell in cells).encode()).hexdigest()
    pin = PINS["experiments"][command]
    assert (len(cells), digest[:16]) == (pin["cells"], pin["identities"])


@pytest.mark.parametrize(
    "module", ["mth.grid.worker", "mth.tasks.math_worker", "mth.grid.slurm", "mth.grid.__main__", "mth.train", "mth.serve"]
)
def test_modules_that_are_started_or_unpickled_by_name(module):
    assert importlib.import_module(module)
    from hydra_plugins.mth_launcher import GridLauncher
    from mth.grid.slurm import Job

    assert Job.__module__ == "mth.grid.slurm"
    assert f"{GridLauncher.__module__}.{GridLauncher.__name__}" == PINS["launcher_keys"]["local"]["_target_"]
