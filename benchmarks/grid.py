"""What a grid costs beyond training: seconds per cell run here, one at a time, and seconds to launch 60 cells on SLURM.

python benchmarks/grid.py [cells]       in a folder of its own; the second part needs a SLURM, and takes its jobs out of the queue again

The cells run twice, each as a process of its own and forked from a resident process, in turns of a few cells.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mth.grid import slurm
from mth.grid.record import read_grid
from mth.runs.journal import read_journal

CELL = ["task=arithmetic", "train.steps=5", "train.batch_size=128", "eval.samples=128"]
TURNS = 2
SIXTY = ["sparsity=99,99.5,99.9,99.95,99.99,99.999", "mask_seed=range(0,10)"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1", "detach=true"]


def mth(module: str, *arguments: str, cwd: Path) -> float:
    """Run a command of mth; its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"mth.{module}", *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return time.perf_counter() - start


def overhead(folder: Path, name: str, seeds: range, resident: bool) -> tuple[float, float]:
    """Wall seconds of a grid of these mask seeds, and the part of it that is rollout, update, synchronisation or evaluation."""
    sweep = f"mask_seed={','.join(map(str, seeds))}"
    keys = [f"hydra.launcher.resident={str(resident).lower()}", "force=true", f"run_dir=multirun/{name}"]
    wall = mth("train", "-m", sweep, *CELL, *keys, cwd=folder)
    runs = [read_journal(entry.dir) for entry in read_grid(folder / "multirun" / name).cells]
    return wall, sum(v for run in runs for line in run for key, v in line.metrics.items() if key.startswith("seconds/"))


def per_cell(folder: Path, cells: int, resident: bool, turn: int) -> float:
    """Seconds per cell beyond training; a grid of two cells is taken off, and with it what a launch costs."""
    kind = "together" if resident else "apart"
    (few, few_training), (all_, training) = (overhead(folder, f"{kind}{turn}-{count}", range(count), resident) for count in (2, 2 + cells))
    return (all_ - few - training + few_training) / cells


def main(cells: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mth-grid-"))
    found: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(TURNS):
        for resident, values in found.items():
            values.append(round(per_cell(folder, cells // TURNS, resident, turn), 2))
    result: dict[str, object] = {"apart_s_per_cell": found[False], "resident_s_per_cell": found[True]}
    if shutil.which("sbatch") and slurm.answers():
        held = "+hydra.launcher.additional_parameters.hold=true"
        result["launch_60_cells_s"] = round(mth("train", "-m", *SIXTY, *SLURM, held, "run_dir=multirun/sixty", cwd=folder), 1)
        mth("grid", "cancel", "multirun/sixty", cwd=folder)
    print(json.dumps(result))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
