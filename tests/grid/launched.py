"""What tests of grids share: small runs, commands as processes, and entries of a grid."""

import os
import subprocess
import sys
import time

from mth.config.launchers import launcher_settings
from mth.grid.record import GridCell, read_grid
from mth.grid.state import cell_states

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


def mth(module, *arguments, cwd, check=True, **environment):
    given = os.environ | environment
    result = subprocess.run(command(module, *arguments), cwd=cwd, capture_output=True, text=True, timeout=300, env=given)
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
