"""One cell of a grid in a process of its own: python -m mth.grid.worker <run folder> <grid folder>.

Imports the frozen copy of the package that the launcher puts on PYTHONPATH, and runs the configuration that was stored at submission.
"""

import os
import signal
import sys
from pathlib import Path

from mth.config import read_config
from mth.files import read_json, write_json
from mth.grid.record import read_grid
from mth.runs import DONE, status_of
from mth.signals import listen

LOCK_PATIENCE_S = 180.0  # a requeued job may start while the old process, or a lost node's lock, is still dying


def run_cell(run_dir: Path, grid_dir: Path) -> None:
    """Run or continue the cell, or end at once when it is done. An exception leaves `summary.json` with its first line, and goes on up.

    After a stop that a scheduler asked for, its kept signal handler is called last: it puts the job back into the queue and exits.
    """
    requests = listen()
    if status_of(run_dir) in DONE:
        print(f"{run_dir}: already {status_of(run_dir)}")
        return
    from mth.trainer import train

    config, grid = read_config(run_dir / "config.yaml"), read_grid(grid_dir)
    try:
        summary = train(config, run_dir, grid.root, requests, grid.folder, LOCK_PATIENCE_S)
    except BaseException as error:
        if status_of(run_dir) is None and read_json(run_dir / "run.json").get("pid") == os.getpid():  # it was ours to run
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            write_json(run_dir / "summary.json", {"status": "failed", "reason": reason, "label": config.label})
        raise
    print(f"{config.label}: {summary['status']} after {summary['steps']} steps", flush=True)
    if requests.requeue and summary["status"] == "interrupted":
        assert requests.kept is not None
        requests.kept(signal.SIGUSR2, None)


if __name__ == "__main__":
    run_cell(Path(sys.argv[1]), Path(sys.argv[2]))
