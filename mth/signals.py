"""Signals become requests that the training loop reads at step boundaries."""

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
    """stop: save and end. save: write a checkpoint and go on. received: the signal that asked for the stop. kept: what SIGUSR2 did before."""

    stop: bool = False
    save: bool = False
    received: int | None = None
    kept: Handler | None = None

    @property
    def requeue(self) -> bool:
        """The stop was asked for by a scheduler that will start the job again."""
        return self.kept is not None and self.received == signal.SIGUSR2


def listen() -> Requests:
    """Requests filled by the signals of this process.

    SIGINT and SIGTERM stop; a second one ends the process at once. In a SLURM job SIGUSR2 (submitit's word for a time limit or a preemption)
    stops too, and SIGTERM only saves: it announces a kill that SLURM carries out, or follows by a requeue, by itself, and a job that ends on
    its own in between would not be requeued.
    """
    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        requests.stop, requests.received = True, number
        if number != signal.SIGUSR2:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        _say(f"{signal.Signals(number).name}: saving at the next step boundary; once more ends at once")

    def save(number: int, frame: FrameType | None) -> None:
        requests.save = True
        _say(f"{signal.Signals(number).name}: saving at the next step boundary")

    signal.signal(signal.SIGINT, stop)
    if "SLURM_JOB_ID" not in os.environ:
        signal.signal(signal.SIGTERM, stop)
        return requests
    signal.signal(signal.SIGTERM, save)
    kept = signal.signal(signal.SIGUSR2, stop)
    requests.kept = kept if callable(kept) else None
    return requests


def _say(line: str) -> None:
    print(f"\n{line}", file=sys.stderr, flush=True)
