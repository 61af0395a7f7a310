"""What a grid costs beyond training: seconds per cell run here, one at a time, and seconds to launch 60 cells on SLURM.

python benchmarks/grid.py [cells]       in a folder of its own; the second part needs a SLURM, and takes its jobs out of the queue again
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
SIXTY = ["sparsity=99,99.5,99.9,99.95,99.99,99.999", "mask_seed=range(0,10)"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1", "detach=true"]


def mth(module: str, *arguments: str, cwd: Path) -> float:
    """Run a command of mth; its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"mth.{module}", *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return time.perf_counter() - start


def overhead(folder: Path, cells: int) -> float:
    """Seconds per cell that are neither rollout, update, synchronisation nor evaluation; a grid of one cell fewer is taken off."""
    walls, training = [], []
    for count, first in ((1, 0), (1 + cells, 1)):
        seeds = ",".join(str(first + i) for i in range(count))
        walls.append(mth("train", "-m", f"mask_seed={seeds}", *CELL, f"run_dir=multirun/{count}", cwd=folder))
        runs = [read_journal(entry.dir) for entry in read_grid(folder / "multirun" / str(count)).cells]
        training.append(sum(v for run in runs for line in run for key, v in line.metrics.items() if key.startswith("seconds/")))
    return (walls[1] - walls[0] - training[1] + training[0]) / cells


def main(cells: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mth-grid-"))
    result = {"overhead_s_per_cell": round(overhead(folder, cells), 1)}
    if shutil.which("sbatch") and slurm.answers():
        held = "+hydra.launcher.additional_parameters.hold=true"
        result["launch_60_cells_s"] = round(mth("train", "-m", *SIXTY, *SLURM, held, "run_dir=multirun/sixty", cwd=folder), 1)
        mth("grid", "cancel", "multirun/sixty", cwd=folder)
    print(json.dumps(result))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
