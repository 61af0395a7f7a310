"""Turns signals into requests that the training loop reads between steps."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@dataclass
class Requests:
    """What the process was asked to do.

    stop: save and end. save: write a checkpoint and continue. received: number of the signal that asked for the stop.
    previous_handler: handler of SIGUSR2 before `listen`, which requeues the job.
    """

    stop: bool = False
    save: bool = False
    received: int | None = None
    previous_handler: Handler | None = None

    @property
    def requeue(self) -> bool:
        """Whether a scheduler asked for the stop and will start the job again."""
        return self.previous_handler is not None and self.received == signal.SIGUSR2


def listen() -> Requests:
    """Install signal handlers and return the requests that they fill.

    SIGINT and SIGTERM stop the run; a second one ends the process at once. In a SLURM job, SIGUSR2 also stops the run: submitit sends it at
    a time limit or a preemption. SIGTERM then only saves. SLURM sends it before it kills or requeues a job, and would not requeue a job that
    ends by itself.
    """
    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        requests.stop, requests.received = True, number
        if number != signal.SIGUSR2:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        _print(f"{signal.Signals(number).name}: saving after this step; send it again to end at once")

    def save(number: int, frame: FrameType | None) -> None:
        requests.save = True
        _print(f"{signal.Signals(number).name}: saving after this step")

    signal.signal(signal.SIGINT, stop)
    if "SLURM_JOB_ID" not in os.environ:
        signal.signal(signal.SIGTERM, stop)
        return requests
    signal.signal(signal.SIGTERM, save)
    previous = signal.signal(signal.SIGUSR2, stop)
    requests.previous_handler = previous if callable(previous) else None
    return requests


def _print(line: str) -> None:
    print(f"\n{line}", file=sys.stderr, flush=True)
