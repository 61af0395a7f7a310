"""The journal: every metric of every step, on disk before anything else hears of it. A run resumes from it."""

import operator
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mth.foundations.errors import UserError
from mth.foundations.files import from_json, to_json, write_text
from mth.runs.folder import RunFolder
from mth.runs.metrics import EVALUATION_SECONDS


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    time: milliseconds since 1970. rewards: of an evaluation, task -> the rewards of all replies, prompt by prompt; MLflow does not get them.
    """

    step: int
    time: int
    metrics: dict[str, float]
    rewards: dict[str, list[float]] = field(default_factory=dict)


def read_journal(run_dir: Path) -> list[Entry]:
    """All readable lines of a run's journal. What is damaged is left out; `damaged_lines` names it."""
    return _read_lines(run_dir)[0]


def damaged_lines(run_dir: Path) -> dict[int, bytes]:
    """Number and bytes of the lines that are no entry, but for a last one that a kill cut short."""
    return _read_lines(run_dir)[1]


def _read_lines(run_dir: Path) -> tuple[list[Entry], dict[int, bytes]]:
    path = RunFolder(run_dir).journal_file
    entries, damaged = [], {}
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_entry(from_json(line.decode())))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            if number < len(lines):  # what follows the last line break was never finished
                damaged[number] = line
    return entries, damaged


def _entry(data: Any) -> Entry:
    """The entry of a line. Raises an error of some kind if it is none."""
    entry = Entry(operator.index(data["step"]), int(data["time"]), dict(data["metrics"]), dict(data.get("rewards") or {}))
    for number in (*entry.metrics.values(), *(reward for rewards in entry.rewards.values() for reward in rewards)):
        if not isinstance(number, int | float):
            raise TypeError(number)
    return entry


def write_journal(run_dir: Path, entries: Iterable[Entry]) -> None:
    """Replace a run's journal atomically."""
    write_text(RunFolder(run_dir).journal_file, "".join(_line(entry) for entry in entries))


def without_evaluation(entry: Entry) -> Entry:
    """The entry of a step as if it had not been evaluated."""
    metrics = {key: value for key, value in entry.metrics.items() if not key.startswith("eval/") and key != EVALUATION_SECONDS}
    return replace(entry, metrics=metrics, rewards={})


class Journal:
    """Appends one line per step. On resume, lines beyond the checkpoint are cut off; their steps will be run, and written, again.

    A repeated step keeps the time of its first writing, so that MLflow takes it for the same point. Damaged lines are named and set aside in
    `journal.damaged.jsonl`; the steps after them stay. Raises UserError if the journal ends before the checkpoint.
    """

    def __init__(self, run_dir: Path, last_step: int) -> None:
        self.path = RunFolder(run_dir).journal_file
        known, damaged = _read_lines(run_dir)
        reached = max((entry.step for entry in known), default=-1)
        if reached < last_step:
            ends = f"ends at step {reached}" if reached >= 0 else "holds no step"
            earlier = f"remove the checkpoints after step {reached} to go on from there, " if reached >= 0 else ""
            raise UserError(
                f"{self.path} {ends}, before the checkpoint of step {last_step}; put it back, {earlier}or give force=true to run anew"
            )
        if damaged:
            self._set_aside(damaged)
        self.entries = [entry for entry in known if entry.step <= last_step]
        self.times = {entry.step: entry.time for entry in known}
        write_journal(run_dir, self.entries)

    def _set_aside(self, damaged: dict[int, bytes]) -> None:
        aside = self.path.with_name("journal.damaged.jsonl")
        with open(aside, "ab") as file:
            file.write(b"".join(line + b"\n" for line in damaged.values()))
        lines = ", ".join(map(str, damaged))
        print(f"warning: {self.path}: line {lines} cannot be read and was moved to {aside.name}; the steps after it stay", file=sys.stderr)

    def append(self, step: int, metrics: dict[str, float], rewards: dict[str, list[float]] | None = None) -> Entry:
        """Write one step to disk. Raises UserError if the disk is full."""
        entry = Entry(step, self.times.get(step, int(time.time() * 1000)), metrics, rewards or {})
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
    rewards = {"rewards": entry.rewards} if entry.rewards else {}
    return to_json({"step": entry.step, "time": entry.time, "metrics": entry.metrics} | rewards) + "\n"


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens at this one."""
    return every > 0 and step % every == 0
