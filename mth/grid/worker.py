"""One cell of a grid in a process of its own: python -m mth.grid.worker <run folder> <grid folder>.

Imports the frozen copy of the package that the launcher puts on PYTHONPATH, and runs the configuration that was stored at submission.
"""

import os
import signal
import sys
from pathlib import Path

from mth.config.cells import Cell
from mth.foundations.errors import first_line, require
from mth.foundations.output import prepare_output
from mth.foundations.paths import PACKAGE
from mth.foundations.provenance import SNAPSHOT
from mth.foundations.signals import listen, nothing_to_save
from mth.grid.capacity import refuse_too_large
from mth.grid.memory import facts_of_models
from mth.grid.record import read_grid
from mth.runs.folder import DONE, RunFolder
from mth.runs.journal import read_journal
from mth.runs.summary import Summary

LOCK_PATIENCE_S = 180.0  # a requeued job may start while the old process, or a lost node's lock, is still going away


def run_cell(run_dir: Path, grid_dir: Path) -> None:
    """Run or continue the cell; return at once if it is done. An exception leaves its first line in `summary.json` and is raised again.

    After a stop that a scheduler asked for, the signal handler that was there before is called last: it requeues the job and exits.
    Raises UserError if the frozen code is gone, so that another one would run.
    """
    prepare_output()
    require((PACKAGE.parent / SNAPSHOT).is_file(), f"the code that {grid_dir} froze was deleted, and {PACKAGE} is another one; put it back")
    requests, folder = listen(), RunFolder(run_dir)
    if folder.status in DONE:
        print(f"{run_dir}: already {folder.status}")
        return
    from mth.training.loop import train
    from mth.training.shown import why_nothing_was_learned

    config, grid = folder.config(), read_grid(grid_dir)
    try:
        if "SLURM_JOB_ID" in os.environ:  # the launcher did not know this machine's memory
            refuse_too_large([Cell((), "", config, {})], {repr(config.model): facts_of_models(config.model, {})})
        summary = train(config, run_dir, grid.root, requests, grid.folder, LOCK_PATIENCE_S)
    except KeyboardInterrupt:  # the second one
        raise SystemExit(128 + signal.SIGINT) from None
    except BaseException as error:
        if folder.status is None and folder.record().get("pid") == os.getpid():  # it was ours to run
            folder.write_summary(Summary(status="failed", reason=first_line(error), label=config.label))
        raise
    finally:
        nothing_to_save()
    print(f"{config.label}: {summary.status} after {summary.steps} steps", flush=True)
    if hint := why_nothing_was_learned(read_journal(run_dir), config):
        print(f"hint: {hint}", flush=True)
    if requests.requeue and summary.status == "interrupted":
        assert requests.previous_handler is not None
        requests.previous_handler(signal.SIGUSR2, None)


if __name__ == "__main__":
    run_cell(Path(sys.argv[1]), Path(sys.argv[2]))
