"""What people see of a grid: a table of its cells, and a progress bar while it runs."""

import time
from collections.abc import Sequence

from mth.foundations.progress import Bar
from mth.foundations.statistics import plus_minus
from mth.grid.record import Grid
from mth.grid.state import PENDING, CellState, cell_states
from mth.runs.folder import DONE

WATCH_EVERY_S = 2.0


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Columns padded to their widest entry; the first `left` and the last are flush left, the others right. Empty columns are dropped."""
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[line[i] for i in keep] for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keep))]
    last = len(keep) - 1

    def pad(i: int, text: str) -> str:
        return text.ljust(widths[i]) if keep[i] < left or i == last else text.rjust(widths[i])

    return "\n".join("  ".join(pad(i, text) for i, text in enumerate(line)).rstrip() for line in lines)


def state_table(states: Sequence[CellState]) -> str:
    """One line per cell, and a line of counts."""
    head = ("cell", "state", "step", "reward", "pass@1", "seconds", "node", "job", "reason")
    rows = [
        (
            cell.entry.name,
            cell.state,
            f"{cell.step}/{cell.steps}",
            "" if cell.reward is None else f"{cell.reward:.3f}",
            ", ".join(f"{before:.3f} -> {plus_minus(after, error)}" for before, after, error in cell.passes.values()),
            f"{cell.seconds:.0f}" if cell.seconds else "",
            cell.node,
            cell.job,
            cell.reason,
        )
        for cell in states
    ]
    return f"{table(head, rows)}\n{counts(states)}"


def counts(states: Sequence[CellState]) -> str:
    """How many cells are in which state."""
    names = dict.fromkeys(cell.state for cell in states)
    return ", ".join(f"{sum(cell.state == name for cell in states)} {name}" for name in names)


def status_frame(grid: Grid, height: int) -> tuple[str, bool]:
    """The table of a grid for a terminal of so many lines, and whether all cells have ended. What works comes first, counts come last."""
    states = cell_states(grid)
    over = not any(cell.state in PENDING for cell in states)
    room = height - 4
    if over or len(states) <= room:
        return state_table(states), over
    order = ("running", "failed", "killed", "queued")
    first = sorted(states, key=lambda cell: order.index(cell.state) if cell.state in order else len(order))
    head, _, _ = state_table(first[:room]).rpartition("\n")
    return f"{head}\n... and {len(states) - room} more cells\n{counts(states)}", over


class Display:
    """A bar over the steps of all cells, and a line for each cell that starts or ends."""

    def __init__(self, grid: Grid, every_s: float = 1.0) -> None:
        self.grid, self.every_s = grid, every_s
        self.states = cell_states(grid)
        self.looked = time.monotonic()
        self.before = {cell.entry.name: cell.state for cell in self.states}
        total, done = (sum(getattr(cell, key) for cell in self.states) for key in ("steps", "step"))
        self.bar = Bar(total=total, initial=done, desc="grid", unit="steps")

    def refresh(self) -> list[CellState]:
        """Look at the files again, at most every `every_s` seconds."""
        if time.monotonic() - self.looked < self.every_s:
            return self.states
        self.states, self.looked = cell_states(self.grid), time.monotonic()
        for cell in self.states:
            if cell.state != self.before[cell.entry.name] and cell.state not in ("queued", "new"):
                ends = cell.passes.items()
                passes = "".join(f", {task} pass@1 {before:.3f} -> {plus_minus(after, error)}" for task, (before, after, error) in ends)
                told = passes if cell.state in DONE else f": {cell.reason}" if cell.reason and cell.state not in PENDING else ""
                self.bar.write(f"{cell.entry.name}: {cell.state}{told}")
            self.before[cell.entry.name] = cell.state
        self.bar.set_postfix_str(counts(self.states), refresh=False)
        self.bar.update(sum(cell.step for cell in self.states) - self.bar.n)
        return self.states

    def close(self) -> None:
        self.every_s = 0.0
        self.refresh()
        self.bar.close()
