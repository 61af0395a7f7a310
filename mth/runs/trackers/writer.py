"""Sends a journal to a tracker in the background, again and again until it has arrived. No step waits for it."""

import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from mth.foundations.errors import first_line
from mth.foundations.files import read_json, write_json
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry

RETRY_S = 30.0  # pause after a failure, in seconds
_NOTES = threading.Lock()  # the trackers of a run share one file
LAST_TRIES_S = 1.0  # the same at the end of a run


@dataclass(frozen=True)
class Ending:
    """How a run ended. status: as in its summary."""

    status: str
    reason: str | None = None


class Backend(Protocol):
    """One tracker of one run. Every method may raise; the writer then starts again with `open`.

    place: names it in messages, with its address. patience_s: how long the end of a run waits for it, counted from the last thing that it
    took.
    """

    place: str
    patience_s: float

    def open(self, entries: Sequence[Entry]) -> bool:
        """Make ready; entries: all so far. Returns True if everything has to be sent (again)."""

    def send(self, entries: Sequence[Entry]) -> None:
        """Send steps. What was sent before may come again."""

    def finish(self, entries: Sequence[Entry], ending: Ending) -> None:
        """Send how the run ended. entries: all."""

    def is_busy(self, error: Exception) -> bool:
        """Whether a failure passes by itself, so that the end of a run tries again."""

    def abandon(self) -> None:
        """Let go of everything at once, without waiting."""


class Feed:
    """All entries of a run, and how many of them a backend has taken."""

    def __init__(self, backend: Backend, folder: RunFolder, known: Sequence[Entry]) -> None:
        self.backend, self.folder = backend, folder
        self.entries = list(known)
        self.ready, self.taken = False, 0
        self.moved = time.monotonic()  # when it last took something

    def push(self, ending: Ending | None = None) -> None:
        """Send what is left, and the ending if there is one; the arrival is then noted in the run's folder."""
        try:
            if not self.ready:
                if self.backend.open(self.entries):
                    self.taken = 0
                self.ready, self.moved = True, time.monotonic()
            while self.taken < len(self.entries):
                count = len(self.entries)
                self.backend.send(self.entries[self.taken : count])
                self.taken, self.moved = count, time.monotonic()
            if ending is not None:
                self.backend.finish(self.entries, ending)
                note_arrival(self.folder, self.backend.place, self.entries, ending)
        except BaseException:
            self.ready = False
            raise


class BackgroundWriter:
    """A thread that feeds a backend. The first failure is one line on stderr, at once; later ones are silent until the end."""

    def __init__(self, backend: Backend, folder: RunFolder, known: Sequence[Entry]) -> None:
        self.backend, self.feed = backend, Feed(backend, folder, known)
        self.inbox: queue.Queue[Entry | Ending] = queue.Queue()
        self.problem: str | None = None
        self.error: Exception | None = None
        self.closing, self.ended = False, 0.0
        self._told = False
        self.thread = threading.Thread(target=self._work, name=backend.place.split()[0], daemon=True)
        self.thread.start()

    def send(self, entry: Entry) -> None:
        """Queue an entry; returns at once."""
        self.inbox.put(entry)

    def announce_end(self, ending: Ending) -> None:
        """Queue the end of the run; returns at once."""
        self.closing, self.ended = True, time.monotonic()
        self.inbox.put(ending)

    def close(self) -> str | None:
        """After `announce_end`: wait until everything has arrived, or the backend's patience ends. Returns None, or what did not work."""
        while self.thread.is_alive() and time.monotonic() - max(self.ended, self.feed.moved) < self.backend.patience_s:
            self.thread.join(0.05)
        if self.thread.is_alive():
            self.problem = self.problem or f"no answer within {self.backend.patience_s:.0f} s"
            self.backend.abandon()
        remedy = f"nothing is lost: python -m mth.grid sync {self.feed.folder.path} sends the journal again"
        return self.problem and f"{self.backend.place} did not take everything ({self.problem}); {remedy}"

    def _work(self) -> None:
        self._try()
        paused_until = time.monotonic() + RETRY_S if self.problem else 0.0
        ending = None
        while ending is None:
            ending = self._receive()
            if ending is None and time.monotonic() >= paused_until:
                paused_until = 0.0 if self._try() else time.monotonic() + RETRY_S
        self._finish(ending)

    def _finish(self, ending: Ending) -> None:
        """Send the rest. Tries again where that may help: once if what was open is gone, and as long as the tracker is busy."""
        was_open = self.feed.ready
        while not self._try(ending):
            busy = self.error is not None and self.backend.is_busy(self.error)
            if not (was_open or busy) or time.monotonic() - self.ended > self.backend.patience_s:
                return
            was_open = False
            time.sleep(LAST_TRIES_S)

    def _receive(self) -> Ending | None:
        """Wait for something, and take all that is there: a tracker that was slow gets several steps at once. Returns the ending, if it came."""
        waits = True
        while waits or not self.inbox.empty():
            waits, item = False, self.inbox.get()
            if isinstance(item, Ending):
                return item
            self.feed.entries.append(item)
        return None

    def _try(self, ending: Ending | None = None) -> bool:
        """Returns whether it worked."""
        try:
            self.feed.push(ending)
            self.problem = self.error = None
        except Exception as error:  # whatever a server or its client raises must not end the training run
            self.problem, self.error = first_line(error, 160), error
            if not self._told and not self.closing:
                self._told = True
                line = f"warning: {self.backend.place} does not take the metrics ({self.problem}); training goes on, the journal keeps them"
                tqdm.write(line, file=sys.stderr)
        return self.problem is None


def note_arrival(folder: RunFolder, place: str, entries: Sequence[Entry], ending: Ending) -> None:
    """Keep in the run's folder that a tracker has everything up to the last step and the end."""
    arrived = {"step": entries[-1].step if entries else -1, "status": ending.status}
    with _NOTES:
        write_json(folder.trackers_file, read_json(folder.trackers_file) | {place: arrived})


def has_arrived(folder: RunFolder, place: str, entries: Sequence[Entry]) -> bool:
    """Whether a tracker has every step of a run and how it ended."""
    found = read_json(folder.trackers_file).get(place)
    return found == {"step": entries[-1].step if entries else -1, "status": folder.status or "interrupted"}
