"""python -m mth.samples: what the model wrote.

Reads the samples that runs keep: prompts, replies, rewards and scores of evaluations and of training, newest step first. RUN is the folder
of a run, or of a grid: then the cells take turns. What a model wrote is shown as it is, special tokens included; control characters are
written out, as \\x1b.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mth.config.cli import one_line_errors
from mth.foundations.errors import require
from mth.foundations.text import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

    from mth.analysis.samples import Compared, Shown
    from mth.runs.samples import Sample

PIPE_WIDTH = 160  # columns of a comparison where there is no terminal


def folders_of(path: Path) -> dict[str, Path]:
    """The run folders of a grid by the names of its cells, or a run folder with an empty name. Raises UserError if it is neither."""
    from mth.grid.record import is_grid, read_grid
    from mth.runs.folder import RunFolder

    if is_grid(path):
        return {cell.name: cell.dir for cell in read_grid(path).cells}
    require(path.is_dir(), f"{path} does not exist; give the folder of a run or of a grid")
    require(RunFolder(path).exists, f"{path} is not the folder of a run or of a grid; look below it, or below multirun")
    return {"": path}


def headline(shown: "Shown") -> "Text":
    """Where a sample is from and what it was worth, in one line."""
    from rich.text import Text

    sample = shown.sample
    return Text(" ").join(
        [
            *([Text(visible(shown.run), "bold magenta")] if shown.run else []),
            Text(f"step {sample.step}", "bold cyan"),
            Text(f"{sample.kind} {visible(sample.task)} {visible(sample.uid)} reply {sample.reply}", "cyan"),
            *worth(sample),
        ]
    )


def worth(sample: "Sample") -> "list[Text]":
    """Reward, how it ended, length, and what else is known of a reply."""
    from rich.text import Text

    more = [f"{visible(name)} {value:.3g}" for name, value in sample.scores.items() if name != "reward"]
    more += [f"advantage {sample.advantage:+.3f}"] if sample.advantage is not None else []
    more += [f"logprob {sample.logprob:.3f}"] if sample.logprob is not None else []
    more += [f"entropy {sample.entropy:.3f}"] if sample.entropy is not None else []
    style = "bold green" if sample.reward >= 1 else "bold red" if sample.reward <= 0 else "bold yellow"
    facts = Text(", ".join([f"{sample.tokens} tokens", *more]), "dim")
    return [Text(f"reward {sample.reward:.3f}", style), Text(sample.stop, "red" if sample.stop == "cut" else "dim"), facts]


def conversation(sample: "Sample") -> "list[RenderableType]":
    """The turns behind the prompt, the model's and the user's."""
    return [part for index, text in enumerate(sample.turns) for part in block("user" if index % 2 else "reply", text)]


def block(name: str, text: str) -> "list[RenderableType]":
    """A text below its name."""
    from rich.text import Text

    return [Text(f"{name}:", "dim bold"), Indented(visible(text), "bold" if name == "reply" else "")]


@dataclass(frozen=True)
class Indented:
    """A text two columns to the right, so that no text can pass for another part. A terminal's broken lines are indented too."""

    text: str
    style: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.padding import Padding
        from rich.text import Text

        if options.no_wrap:
            yield Text("\n".join(f"  {line}" for line in self.text.split("\n")), self.style)
        else:
            yield Padding(Text(self.text, self.style, overflow="fold"), (0, 0, 0, 2), expand=False)


def truth(sample: "Sample") -> "list[RenderableType]":
    """The content of a perfect reply."""
    return block("truth", "\n".join(sample.truth)) if sample.truth else []


def show(shown: "Shown") -> "list[RenderableType]":
    """A sample, from its headline to the truth."""
    sample = shown.sample
    return [headline(shown), *block("prompt", sample.prompt), *conversation(sample), *truth(sample), ""]


def show_compared(row: "Compared") -> "list[RenderableType]":
    """A prompt, the truth, and its replies: two side by side, those of more cells one below the other."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    first = row.replies[0].sample
    title = Text(f"{visible(first.task)} {visible(first.uid)} reply {first.reply}", "bold cyan")
    parts: list[RenderableType] = [title, *block("prompt", first.prompt), *truth(first)]
    if len(row.replies) > 2:
        return [*parts, *(part for shown in row.replies for part in (headline(shown), *conversation(shown.sample))), ""]
    table = Table(expand=True, show_lines=False)
    for shown in row.replies:
        name = " ".join([*([visible(shown.run)] if shown.run else []), f"step {shown.sample.step}"])
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Group(Text(" ").join(worth(shown.sample)), *conversation(shown.sample)) for shown in row.replies))
    return [*parts, table, ""]


def console() -> "Console":
    """Colours and the terminal's width at a terminal; neither colours nor broken lines in a pipe."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    width = None if terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(width=width, force_terminal=terminal or None, highlight=False, markup=False, emoji=False)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mth.samples", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run or of a grid")
    parser.add_argument("--step", type=int, help="samples of this step only; with --changed, the evaluation to compare with the first")
    parser.add_argument("--task", help="samples of this task only")
    parser.add_argument("--kind", choices=("eval", "train"), help="samples of evaluations, or of training, only")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--best", action="store_true", help="highest rewards first; with --changed, largest gains")
    order.add_argument("--worst", action="store_true", help="lowest rewards first; with --changed, largest losses")
    parser.add_argument(
        "--changed",
        action="store_true",
        help="the same prompt at the first and the last evaluation, side by side; in a grid, at the last evaluation of each cell",
    )
    parser.add_argument("--grep", default="", metavar="TEXT", help="samples with this text in the prompt or a turn")
    parser.add_argument("--limit", type=int, default=10, help="most samples, or prompts, to show (default 10; 0: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    require(arguments.limit >= 0, f"--limit {arguments.limit} must be at least 0")
    from mth.analysis.samples import Choice, choose, compare, runs_with_samples
    from mth.foundations.files import to_json

    order_by = "best" if arguments.best else "worst" if arguments.worst else ""
    choice = Choice(arguments.step, arguments.task, arguments.kind, order_by, arguments.grep, arguments.limit)
    runs = runs_with_samples(folders_of(arguments.run))
    if arguments.changed:
        compared = compare(runs, choice)
        plain, parts = [row.to_json() for row in compared], [part for row in compared for part in show_compared(row)]
    else:
        chosen = choose(runs, choice)
        plain, parts = [shown.to_json() for shown in chosen], [part for shown in chosen for part in show(shown)]
    if arguments.json:
        print(to_json(plain, indent=1))
        return
    screen = console()
    os.environ.setdefault("LESS", "-FRX")  # colours pass through; what fits on the screen is not paged
    with screen.pager(styles=True) if screen.is_terminal and sys.stdin.isatty() else nullcontext():
        for part in parts:
            screen.print(part, soft_wrap=not screen.is_terminal and not hasattr(part, "add_row"))


if __name__ == "__main__":
    main()
