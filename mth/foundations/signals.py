"""Turns signals into requests that the training loop reads between steps, and that interrupt an evaluation at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(BaseException):
    """Raised within `Requests.interruptible` by a signal that asks for a stop. No error: it passes every `except Exception`."""


@dataclass
class Requests:
    """What the process was asked to do.

    stop: save and end. save: write a checkpoint and continue. received: number of the signal that asked for the stop.
    previous_handler: handler of SIGUSR2 before `listen`, which requeues the job. save_now: see `interruptible`.
    """

    stop: bool = False
    save: bool = False
    received: int | None = None
    previous_handler: Handler | None = None
    save_now: Callable[[], None] | None = None

    @property
    def requeue(self) -> bool:
        """Whether a scheduler asked for the stop and will start the job again."""
        return self.previous_handler is not None and self.received == signal.SIGUSR2

    @contextmanager
    def interruptible(self, save: Callable[[], None]) -> Iterator[None]:
        """Within, a stop raises Interrupted at once, also one that was asked for before, and a request to save calls `save` at once.

        For work that takes long and changes nothing that `save` writes.
        """
        if self.stop:
            raise Interrupted
        self.save_now = save
        try:
            yield
        finally:
            self.save_now = None


def listen() -> Requests:
    """Install signal handlers and return the requests that they fill.

    SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 stop the run. A second SIGINT raises KeyboardInterrupt, a third one and a second one of the
    others end the process at once. A signal that the process was started to ignore, as SIGHUP is under nohup, stays ignored.
    In a SLURM job, submitit sends SIGUSR2 at a time limit or a preemption. SIGTERM then only saves: SLURM sends it before it kills or
    requeues a job, and would not requeue a job that ends by itself.
    """
    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        requests.stop, requests.received = True, number
        if number != signal.SIGUSR2 or not in_slurm:  # a scheduler may repeat its own
            signal.signal(number, at_once if number == signal.SIGINT else signal.SIG_DFL)
        _print(f"{signal.Signals(number).name}: saving {_when(requests)}; send it again to end at once")
        if requests.save_now is not None:
            raise Interrupted

    def save(number: int, frame: FrameType | None) -> None:
        _print(f"{signal.Signals(number).name}: saving {_when(requests)}")
        if requests.save_now is not None:
            requests.save_now()
        else:
            requests.save = True

    def at_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    in_slurm = "SLURM_JOB_ID" in os.environ
    for number in HANDLED:
        previous = signal.getsignal(number)
        if previous is signal.SIG_IGN and number != signal.SIGINT:
            continue
        signal.signal(number, save if in_slurm and number == signal.SIGTERM else stop)
        if in_slurm and number == signal.SIGUSR2:
            requests.previous_handler = previous if callable(previous) else None
    return requests


def nothing_to_save() -> None:
    """From now on Ctrl-C ends the process at once and without a traceback, also while Python shuts down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _when(requests: Requests) -> str:
    return "after this step" if requests.save_now is None else "now"


def _print(line: str) -> None:
    """Write to stderr below Python's buffers, which the signal may have interrupted in a write."""
    with suppress(OSError):
        os.write(2, f"{chr(10) if sys.stderr.isatty() else ''}{line}\n".encode())
