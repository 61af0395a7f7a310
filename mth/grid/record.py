"""A grid's folder: `grid.json` (cells, code, command), `environment.json`, `events.jsonl` (submissions and ends), `code/`, `base/`."""

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from mth.foundations.errors import UserError, first_line
from mth.foundations.files import from_json, read_json, to_json, write_json
from mth.foundations.locks import hold, holder
from mth.runs.folder import host_name

FORMAT = "mth-grid-1"
EVENTS: dict[str, dict[str, type]] = {
    "submitted": {"cells": list, "jobs": dict},
    "ended": {"cell": str, "code": int},
    "cancelled": {"cells": list},
}


@dataclass
class GridCell:
    """A cell as its grid keeps it. dir: run folder, which may be inside an earlier grid. found: see `Place`, at launch.

    steps, tasks: optimizer steps and evaluation tasks of its configuration. beginning: folder of the shorter run that it extends, if any.
    """

    name: str
    dir: Path
    overrides: list[str]
    identity: str
    launcher: dict[str, Any]
    found: str
    steps: int
    tasks: list[str]
    beginning: str = ""

    @property
    def beginning_dir(self) -> Path | None:
        """The folder of the shorter run."""
        return Path(self.beginning) if self.beginning else None


@dataclass
class Grid:
    """A grid and its cells.

    folder: of the grid. root: of all runs. code: the frozen copy that the cells import. version: its commit. command: as it was typed.
    cwd: where it was typed; the cells read relative paths from there.
    """

    folder: Path
    root: Path
    code: Path
    version: dict[str, Any]
    command: str
    cells: list[GridCell]
    cwd: Path = field(default_factory=Path.cwd)

    def write(self) -> None:
        """Store everything in `grid.json`. Folders inside the grid's own are stored relative to it, so that it can be moved."""
        cells = [asdict(entry) | {"dir": self._short(entry.dir)} for entry in self.cells]
        data = {"format": FORMAT, "root": str(self.root), "code": self._short(self.code), "version": self.version, "command": self.command}
        write_json(self.folder / "grid.json", data | {"cwd": str(self.cwd), "cells": cells})

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)


def is_grid(folder: Path) -> bool:
    """Whether a folder belongs to a grid."""
    return (folder / "grid.json").is_file()


def read_grid(folder: Path) -> Grid:
    """The grid of a folder. Raises UserError if the folder is none of a grid, or if its record is damaged."""
    folder = folder.resolve()
    data = read_json(folder / "grid.json")
    if data.get("format") != FORMAT:
        raise UserError(f"{folder} is not the folder of a grid: it has no grid.json of this version of mth")
    try:
        cells = [GridCell(**cell | {"dir": folder / cell["dir"]}) for cell in data["cells"]]
        return Grid(folder, Path(data["root"]), folder / data["code"], data["version"], data["command"], cells, Path(data["cwd"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'grid.json'} is damaged, or of a newer version of mth ({first_line(error, 80)})") from error


def log_event(folder: Path, event: str, **details: Any) -> None:
    """Append an event to `events.jsonl`: what was submitted, what ended and how, what was cancelled."""
    line = to_json({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **details}) + "\n"
    with open(folder / "events.jsonl", "a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All readable lines of `events.jsonl`; what is damaged is left out."""
    path = folder / "events.jsonl"
    events = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            event = from_json(line.decode())
            if all(isinstance(event[key], kind) for key, kind in EVENTS[event["event"]].items()):
                events.append(event)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return events


def asked_to_end(folder: Path) -> set[str]:
    """Names of the cells that were cancelled and not submitted again since."""
    names: set[str] = set()
    for event in read_events(folder):
        if event["event"] == "submitted":
            names -= set(event["cells"])
        elif event["event"] == "cancelled":
            names |= set(event["cells"])
    return names


def hold_launcher(folder: Path) -> IO[str] | None:
    """The lock of the process that starts this grid's cells on its machine, with its pid and host inside; None if another process has it."""
    handle = hold(folder / ".launcher")
    if handle is not None:
        handle.truncate(0)
        handle.write(f"{os.getpid()} {host_name()}")
        handle.flush()
    return handle


def launcher_at(folder: Path) -> tuple[int, str] | None:
    """Pid and host of the process that is starting cells of this grid right now; None if there is none."""
    pid, _, machine = (holder(folder / ".launcher") or "").partition(" ")
    return (int(pid), machine) if pid.isdigit() else None
