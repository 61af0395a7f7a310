"""Shows progress: a bar at a terminal; elsewhere, as in the log of a SLURM job, a line now and then, without a carriage return."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

LINES_EVERY_S = 60.0
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}{postfix}, {remaining} left"

_purpose: ContextVar[str | None] = ContextVar("purpose", default=None)


class Bar(tqdm):
    """tqdm that writes lines where stderr is no terminal: at most one every `every_s` seconds, and one for each `refresh` that has news.

    leave: whether the last state stays, as a bar or as a line. Starts no thread.
    """

    monitor_interval = 0
    leave: bool | None

    def __init__(self, *arguments: Any, every_s: float = LINES_EVERY_S, **settings: Any) -> None:
        self.as_lines = not sys.stderr.isatty()
        self.said: tuple[Any, ...] = ()
        if self.as_lines:
            settings |= {"mininterval": every_s, "bar_format": LINE, "delay": 1e-9, "dynamic_ncols": False, "ncols": None}
            settings["disable"] = bool(settings.get("disable"))  # an explicit False outweighs TQDM_DISABLE, which keeps other bars away
        super().__init__(*arguments, **{"miniters": 0, "dynamic_ncols": True} | settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the bar, or a line if there is something new to say."""
        if not self.as_lines:
            return bool(super().display(msg, pos))
        news = (self.n, self.postfix)
        if msg is None and news != self.said:
            self.said = news
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False  # nothing is left behind that tqdm would have to clear

    def clear(self, nolock: bool = False) -> None:
        """Remove the bar from the terminal. A line stays."""
        if not self.as_lines:
            super().clear(nolock)

    def close(self) -> None:
        """Write the last state if it is to stay."""
        if self.as_lines and not self.disable:
            if self.leave:
                self.display()
            self.leave = False
        super().close()


@contextmanager
def purpose(words: str) -> Iterator[None]:
    """Within, progress of what is done for something else, such as generating replies, is shown under these words."""
    token = _purpose.set(words)
    try:
        yield
    finally:
        _purpose.reset(token)


def shown_purpose(otherwise: str) -> str:
    """The words of the innermost `purpose`."""
    return _purpose.get() or otherwise


def reply_bar(count: int) -> Bar:
    """A bar over so many replies that are being generated; a terminal shows it after two seconds."""
    return Bar(total=count, desc=shown_purpose("generate"), unit="replies", leave=False, delay=2.0)
