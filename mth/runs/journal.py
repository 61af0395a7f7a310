"""The journal: every metric of every step, on disk before anything else hears of it. A run resumes from it."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mth.foundations.errors import UserError
from mth.foundations.files import write_text
from mth.runs.folder import RunFolder


@dataclass(frozen=True)
class Entry:
    """One line of the journal. time: milliseconds since 1970."""

    step: int
    time: int
    metrics: dict[str, float]


def read_journal(run_dir: Path) -> list[Entry]:
    """All whole lines of a run's journal; a last line that a kill cut short is ignored."""
    path = RunFolder(run_dir).journal_file
    entries = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                data = json.loads(line)
            except ValueError:
                break
            entries.append(Entry(data["step"], data["time"], data["metrics"]))
    return entries


class Journal:
    """Appends one line per step. On resume, lines beyond the checkpoint are cut off; their steps will be run, and written, again.

    A repeated step keeps the time of its first writing, so that MLflow takes it for the same point.
    """

    def __init__(self, run_dir: Path, last_step: int) -> None:
        self.path = RunFolder(run_dir).journal_file
        known = read_journal(run_dir)
        self.entries = [entry for entry in known if entry.step <= last_step]
        self.times = {entry.step: entry.time for entry in known}
        write_text(self.path, "".join(_line(entry) for entry in self.entries))

    def append(self, step: int, metrics: dict[str, float]) -> Entry:
        """Write one step to disk. Raises UserError if the disk is full."""
        entry = Entry(step, self.times.get(step, int(time.time() * 1000)), metrics)
        try:
            with open(self.path, "a") as file:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"journal {self.path} could not be written ({error}); make room, then start again with resume=true") from error
        self.entries.append(entry)
        return entry

    def series(self, metric: str) -> list[float]:
        """A metric over all steps that have it."""
        return [entry.metrics[metric] for entry in self.entries if metric in entry.metrics]


def _line(entry: Entry) -> str:
    return json.dumps({"step": entry.step, "time": entry.time, "metrics": entry.metrics}) + "\n"
