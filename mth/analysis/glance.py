"""A run as it lies in its folder: also one that is at work, that is damaged, or that another version of mth left. Reads nothing else."""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mth.config.schema import Config
from mth.config.stored import flat, from_plain, read_yaml, to_plain
from mth.foundations.errors import UserError
from mth.runs.folder import DONE, RunFolder
from mth.runs.journal import Entry, damaged_lines, read_journal
from mth.runs.lock import is_locked
from mth.runs.summary import Summary

RUNNING, UNFINISHED = "running", "unfinished"


@dataclass
class Glance:
    """What is known of a run.

    settings: of its configuration, by dotted key; a key that its version did not have has its default. status: finished, collapsed, failed,
    interrupted, running, or unfinished (ended without a word). entries: the readable lines of its journal, by step. changed: time of the
    last change, in seconds since 1970. problems: one line for everything that cannot be read.
    """

    path: Path
    settings: dict[str, Any]
    status: str
    summary: Summary
    record: dict[str, Any]
    entries: list[Entry]
    changed: float
    problems: list[str]

    @property
    def step(self) -> int:
        """The last step of the journal; 0 if it has none."""
        return self.entries[-1].step if self.entries else 0

    @property
    def steps(self) -> int:
        """How many steps it is to take."""
        return int(self.settings.get("train.steps") or 0)

    @property
    def tasks(self) -> list[str]:
        """The tasks on which it was evaluated."""
        return list(dict.fromkeys(key.split("/")[1] for entry in self.entries for key in entry.metrics if key.startswith("eval/")))

    @property
    def state(self) -> str:
        """Its state in a sentence; empty if it finished."""
        where = f"step {self.step} of {self.steps}"
        reason = f": {self.summary.reason}" if self.summary.reason else ""
        if self.status == RUNNING:
            return f"This run is at work: {where} at {clock(self.changed)}."
        if self.status == UNFINISHED:
            return f"This run has ended without a word at {where}: it was killed, or its machine was lost."
        return (
            ""
            if self.status == "finished"
            else f"This run {'has' if self.status in (*DONE, 'failed') else 'was'} {self.status} at {where}{reason}"
        )


@cache
def defaults() -> dict[str, Any]:
    """The default of every key, by dotted key. Not to be changed."""
    return flat(to_plain(Config()))


def glance(path: Path, check: bool = True) -> Glance:
    """Look at a run's folder. check: whether to try the configuration on this version of mth, which takes a while."""
    folder, problems = RunFolder(path), []
    settings: dict[str, Any] = {}
    try:
        plain = read_yaml(folder.config_file)
        settings = defaults() | flat(plain)
        if check:
            from_plain(plain)
    except UserError as error:
        problems.append(f"{folder.config_file.name}: {error}")
    files = [each for each in (folder.journal_file, folder.record_file, folder.config_file) if each.is_file()]
    entries = {}
    for entry in read_journal(path):
        entries[entry.step] = entry
    if damaged := damaged_lines(path):
        numbers = ", ".join(map(str, damaged))
        lines = f"line {numbers} is" if len(damaged) == 1 else f"lines {numbers} are"
        problems.append(f"{folder.journal_file.name}: {lines} damaged and left out")
    summary = folder.summary()
    status = RUNNING if is_locked(path) else summary.status or UNFINISHED
    changed = files[0].stat().st_mtime if files else 0.0
    return Glance(path, settings, status, summary, folder.record(), [entries[step] for step in sorted(entries)], changed, problems)


def clock(seconds: float) -> str:
    """A time for people: date, hour, minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
