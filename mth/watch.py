"""python -m mth.watch: the curves of a run in the terminal, redrawn while it trains.

Reads the run's journal and asks the run for nothing, so it may be started and stopped at any time, also on another machine that sees the
folder. A run that has ended, and a pipe, get the curves once. Ctrl-C ends it; the run goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from mth.config.cli import one_line_errors
from mth.foundations.errors import require

if TYPE_CHECKING:
    from mth.config.schema import Config
    from mth.runs.journal import Entry

EVERY_S = 2.0
FEWEST_LINES = 9  # of a panel with its title and axis
NARROW = 70  # columns below which panels are one below the other
RECENT = 20  # steps whose pace is taken for that of the rest


@dataclass(frozen=True)
class Panel:
    """Curves of one quantity. curves: label -> steps and values."""

    title: str
    curves: dict[str, tuple[list[int], list[float]]]


def series(entries: "Sequence[Entry]", metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric; values that are no finite number are left out."""
    from math import isfinite

    points = [(entry.step, value) for entry in entries if isfinite(value := entry.metrics.get(metric, float("nan")))]
    return [step for step, _ in points], [value for _, value in points]


def panels_of(entries: "Sequence[Entry]", tasks: Sequence[str]) -> list[Panel]:
    """The panels that have points, the most important first."""
    from mth.runs.metrics import ENTROPY, PASS_AT_1, REWARD, eval_metric

    found = [
        Panel("reward", {"": series(entries, REWARD)}),
        Panel("pass@1", {task: series(entries, eval_metric(task, PASS_AT_1)) for task in tasks}),
        Panel("entropy (nats)", {"": series(entries, ENTROPY)}),
        Panel("tokens of a reply", {"": series(entries, "completion/tokens_mean")}),
    ]
    return [panel for panel in found if any(steps for steps, _ in panel.curves.values())]


def draw(panels: Sequence[Panel], width: int, height: int) -> str:
    """The panels as a text of at most so many columns and lines, side by side where there is room; the last ones are left out first."""
    import plotext

    columns = 2 if width >= NARROW and len(panels) > 1 else 1
    panels = panels[: columns * max(1, height // FEWEST_LINES)]
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    if len(panels) > 1:
        figure.subplots(-(-len(panels) // columns), columns)
    for index, panel in enumerate(panels):
        plot = figure.subplot(index // columns + 1, index % columns + 1) if len(panels) > 1 else figure
        plot.theme("colorless")
        plot.title(panel.title)
        last = max(steps[-1] for steps, _ in panel.curves.values() if steps)
        first = min(steps[0] for steps, _ in panel.curves.values() if steps)
        ticks = sorted({first + round((last - first) * part / 4) for part in range(5)})
        plot.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
        for (label, (steps, values)), marker in zip(panel.curves.items(), ("braille", "x", "o", "+") * len(panel.curves), strict=False):
            if steps:
                curve = plot.signal(steps, values, marker=marker).lines()
                plot.draw(curve.label(label) if len(panel.curves) > 1 else curve)
    return str(plotext.uncolorize(str(figure.build()))).rstrip("\n")


def headline(entries: "Sequence[Entry]", config: "Config", state: str) -> str:
    """Who, how far, how well, how long: two lines."""
    from mth.training.shown import latest

    step = entries[-1].step if entries else 0
    words = [f"{config.label}: {state}", f"step {step} of {config.train.steps}"]
    if state == "running" and (pace := seconds_per_step(entries)) is not None:
        left = round(pace * (config.train.steps - step))
        words.append(f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d} left")
    return ", ".join(words) + "\n" + ", ".join(latest(entries))


def seconds_per_step(entries: "Sequence[Entry]") -> float | None:
    """Median time between the last steps, so that pauses do not count."""
    recent = entries[-RECENT - 1 :]
    gaps = [(after.time - before.time) / 1000 for before, after in pairwise(recent)]
    return median(gaps) if gaps else None


def frame(run: Path, width: int, height: int) -> tuple[str, bool]:
    """What the terminal shows now, and whether the run has ended."""
    from mth.runs.folder import RunFolder
    from mth.runs.journal import read_journal
    from mth.runs.lock import is_locked

    folder = RunFolder(run)
    running, entries, config = is_locked(run), read_journal(run), folder.config()
    state = "running" if running else folder.status or "ended without a word: killed, or its machine was lost"
    panels = panels_of(entries, config.eval.tasks or [])
    curves = draw(panels, width, height - 4) if panels else "no step is done yet"
    return f"{headline(entries, config, state)}\n\n{curves}", not running


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mth.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, also of a grid's cell")
    parser.add_argument("--once", action="store_true", help="draw once and end")
    arguments = parser.parse_args()
    from mth.foundations.screen import redraw, size
    from mth.grid.record import is_grid
    from mth.runs.folder import RunFolder

    run = arguments.run
    require(not is_grid(run), f"{run} is a grid: python -m mth.grid status {run} --watch; or give the folder of one cell")
    require(RunFolder(run).exists, f"{run} is not the folder of a run; look below it, or below multirun")
    if arguments.once or not sys.stdout.isatty():
        print(frame(run, *size())[0])
    else:
        redraw(lambda width, height: frame(run, width, height), EVERY_S)


if __name__ == "__main__":
    main()
