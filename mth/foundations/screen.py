"""Redraws a text in a terminal until it is the last one."""

import shutil
import sys
import time
from collections.abc import Callable

Frame = Callable[[int, int], tuple[str, bool]]  # columns and lines of the terminal -> text, and whether it will not change any more


def redraw(frame: Frame, every_s: float) -> None:
    """Show a frame every `every_s` seconds until the last one, which stays, or until Ctrl-C.

    At a terminal it fills the screen. Elsewhere, as in a pipe, only the last frame is written.
    """
    try:
        text = _at_terminal(frame, every_s) if sys.stdout.isatty() else _last(frame, every_s)
    except KeyboardInterrupt:
        text, _ = frame(*size())
    print(text)


def size() -> tuple[int, int]:
    """Columns and lines of the terminal; 100 and 40 where there is none."""
    return tuple(shutil.get_terminal_size((100, 40)))  # type: ignore[return-value]


def _at_terminal(frame: Frame, every_s: float) -> str:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            text, is_last = frame(console.width, console.height)
            if is_last:
                return text
            live.update(Text.from_ansi(text, no_wrap=True, overflow="crop"), refresh=True)
            time.sleep(every_s)


def _last(frame: Frame, every_s: float) -> str:
    while True:
        text, is_last = frame(*size())
        if is_last:
            return text
        time.sleep(every_s)
