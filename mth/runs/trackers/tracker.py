"""The journal, and behind it the trackers of a run: each may be away, none holds a step up, all can be sent again."""

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mth.config.schema import Config
from mth.foundations.errors import first_line, require
from mth.runs.folder import RunFolder
from mth.runs.journal import Journal, read_journal
from mth.runs.trackers.record import TrackedRun
from mth.runs.trackers.writer import Backend, BackgroundWriter, Ending, Feed, has_arrived


def _mlflow(run: TrackedRun, uri: str | None) -> Backend:
    from mth.runs.trackers.mlflow import MlflowBackend

    return MlflowBackend(run, uri)


def _tensorboard(run: TrackedRun, uri: str | None) -> Backend:
    from mth.runs.trackers.tensorboard import TensorBoardBackend

    return TensorBoardBackend(run)


def _wandb(run: TrackedRun, uri: str | None) -> Backend:
    from mth.runs.trackers.wandb import WandbBackend

    return WandbBackend(run)


BACKENDS: dict[str, Callable[[TrackedRun, str | None], Backend]] = {"mlflow": _mlflow, "tensorboard": _tensorboard, "wandb": _wandb}


def require_installed(config: Config) -> None:
    """Raises UserError if a tracker's package is missing."""
    for name in config.tracker.chosen:
        require(find_spec(name) is not None, f"tracker={name} needs a package: pip install 'sparse-rlvr[{name}]', or leave the tracker out")


class Tracker:
    """Writes the journal first, then tells the trackers of `tracker.name` and `tracker.also`.

    last_step: the last one that is done. facts, grid, root: see `TrackedRun`.
    """

    def __init__(self, config: Config, run_dir: Path, root: Path, last_step: int, facts: dict[str, Any], grid: Path | None = None) -> None:
        self.journal = Journal(run_dir, last_step)
        self.run = run = TrackedRun(config, RunFolder(run_dir), root, grid, facts)
        self.writers = [BackgroundWriter(BACKENDS[name](run, None), run.folder, self.journal.entries) for name in config.tracker.chosen]

    def log(self, step: int, metrics: dict[str, float], rewards: dict[str, list[float]] | None = None) -> None:
        """Journal first, then the trackers' queues. rewards: see `Entry`."""
        entry = self.journal.append(step, metrics, rewards)
        for writer in self.writers:
            writer.send(entry)

    def close(self, status: str, reason: str | None = None) -> None:
        """Wait for the trackers. status: as in the run's summary. What did not arrive is one line on stderr for each."""
        for writer in self.writers:
            writer.announce_end(Ending(status, reason))
        for writer in self.writers:
            if problem := writer.close():
                print(f"warning: {problem}", file=sys.stderr)


def replay(run: TrackedRun, uri: str | None) -> list[str]:
    """Send a run's whole journal, and how it ended, to its trackers. Waits for each. Returns a line for each one that did not take it.

    uri: an MLflow store that gets the run in place of its own trackers.
    """
    summary, problems = run.folder.summary(), []
    for name in ["mlflow"] if uri else run.config.tracker.chosen:
        backend = BACKENDS[name](run, uri)
        try:
            Feed(backend, run.folder, read_journal(run.folder.path)).push(Ending(summary.status or "interrupted", summary.reason))
        except Exception as error:  # whatever a server or its client raises concerns this run only
            backend.abandon()
            problems.append(f"{backend.place}: {first_line(error, 160)}")
    return problems


def missing(run: TrackedRun) -> list[str]:
    """The trackers, with their addresses, that do not have all of a run."""
    entries: Sequence[Any] = read_journal(run.folder.path)
    places = [BACKENDS[name](run, None).place for name in run.config.tracker.chosen]
    return [place for place in places if not has_arrived(run.folder, place, entries)]
