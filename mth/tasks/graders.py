"""Grades a reply against a gold answer: by exact text, or by mathematical equivalence in worker processes. See docs/graders.md."""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

from mth.foundations.errors import UserError
from mth.tasks.extraction import last_boxed

LONGEST = 1000  # characters of a boxed answer; a longer one is wrong
CACHED = 65536  # grades that are kept
SLICE = 1.0  # seconds; a wait is counted in slices, so the time in which this process was stopped does not count
STALLED = 600.0  # seconds without an answer and without the CPU limit having struck: the worker is lost


def strict(reply: str, gold: str) -> float:
    """1 if the boxed text equals the gold answer, apart from surrounding spaces."""
    boxed = last_boxed(reply)
    return float(boxed is not None and boxed.strip() == gold.strip() != "")


def environment(reply: str, gold: str) -> float:
    r"""1 if the boxed text equals the gold answer as it stands. The published GSM8K runs' environment grades like this.

    The box is the last `\boxed{`, every brace counts, and a reply without a box that closes is compared as a whole.
    """
    _, found, tail = reply.rpartition("\\boxed{")
    depth = 1
    for end, letter in enumerate(tail if found else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return float(tail[:end] == gold != "")
    return float(reply == gold != "")


Job = tuple[str, str, float]  # boxed answer, gold, most seconds of CPU time


@dataclass
class Worker:
    """A process of the pool. job: what it grades, or None. waited: seconds since it was asked or started."""

    process: subprocess.Popen[str]
    ready: bool = False
    job: Job | None = None
    waited: float = 0.0


class Pool:
    """Worker processes that run math-verify, started when they are needed. A worker that is killed is replaced."""

    def __init__(
        self, size: int | None = None, command: tuple[str, ...] = (sys.executable, "-m", "mth.tasks.math_worker"), stalled: float = STALLED
    ) -> None:
        self.size = size or min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self.command = command
        self.stalled = stalled
        self.workers: list[Worker] = []
        self.waiting: deque[Job] = deque()
        self.lost: set[Job] = set()  # whose worker has died once
        self.done: dict[Job, float | None] = {}  # grades that nobody has asked for since they are known
        atexit.register(self.close)

    def grade(self, pairs: Sequence[tuple[str, str]], seconds: float) -> list[float | None]:
        """1 or 0 for each pair (boxed, gold), None if the answer took more than `seconds` of CPU time, or twice lost its worker.

        Raises UserError if a worker does not start.
        """
        jobs = [(*pair, seconds) for pair in pairs]
        self.begin(pairs, seconds)
        while any(job not in self.done for job in jobs):
            self._turn(SLICE)
        found = [self.done[job] for job in jobs]
        for job in set(jobs):
            del self.done[job]
        return found

    def begin(self, pairs: Sequence[tuple[str, str]], seconds: float) -> None:
        """Begin to grade pairs, and hand out what has been waiting, without waiting for a grade. `grade` then finds what is known.

        Raises UserError if a worker does not start.
        """
        known = {*self.done, *self.waiting, *(worker.job for worker in self.workers)}
        self.waiting += [job for job in dict.fromkeys((*pair, seconds) for pair in pairs) if job not in known]
        self._turn(0)

    def _turn(self, patience: float) -> None:
        """Hand out what is waiting and take what is graded. patience: how long to wait for the first grade, in seconds."""
        try:
            self._hand_out()
            for worker in self._answered(patience):
                line, job = (worker.process.stdout.readline() if worker.process.stdout else "").strip(), worker.job
                if line:
                    worker.ready, worker.job, worker.waited = True, None, 0.0
                    if job is not None:
                        self._keep(job, float(line == "1"))
                    continue
                status = self._bury(worker)
                if job is not None and (status == -signal.SIGPROF or job in self.lost):
                    self._keep(job, None)
                elif job is not None:
                    self.lost.add(job)
                    self.waiting.append(job)
            self._hand_out()
        except BaseException:
            self.close()  # an interrupted call must not leave answers in the pipes for the next one
            raise

    def _keep(self, job: Job, grade: float | None) -> None:
        self.done[job] = grade
        self.lost.discard(job)

    def _hand_out(self) -> None:
        """Give an answer to each idle worker; start workers while there are more answers than workers."""
        for worker in self.workers:
            if self.waiting and worker.ready and worker.job is None and worker.process.stdin:
                worker.job, worker.waited = self.waiting.popleft(), 0.0
                try:
                    worker.process.stdin.write(json.dumps(worker.job) + "\n")
                    worker.process.stdin.flush()
                except OSError:  # it has ended, which `_answered` finds
                    pass
        starting = sum(not worker.ready for worker in self.workers)
        for _ in range(min(len(self.waiting) - starting, self.size - len(self.workers))):
            # A new session: Ctrl-C on the training run must not kill the worker and turn a right answer into 0.
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=null, text=True, start_new_session=True)
            self.workers.append(Worker(process))

    def _answered(self, patience: float) -> list[Worker]:
        """Wait until a worker has written or ended, for `patience` seconds at most. Kills those that have stalled."""
        busy = {
            worker.process.stdout: worker
            for worker in self.workers
            if worker.process.stdout and (worker.job is not None or not worker.ready)
        }
        found = wait([stream.fileno() for stream in busy], patience)
        for worker in busy.values() if not found else ():
            worker.waited += patience
            if worker.waited >= self.stalled:
                worker.process.kill()
        return [worker for stream, worker in busy.items() if stream.fileno() in found]

    def _bury(self, worker: Worker) -> int:
        """Remove a worker that has ended and return its exit status. Raises UserError if it had not started."""
        self.workers.remove(worker)
        status = end(worker.process)
        if not worker.ready:
            raise UserError("task.grader: the math-verify process does not start; is the package math-verify installed?")
        return status

    def close(self) -> None:
        """Kill the workers and forget what they were to grade. The next call starts new ones."""
        self.waiting.clear()
        self.lost.clear()
        while self.workers:
            end(self.workers.pop().process)


def end(process: subprocess.Popen[str]) -> int:
    """Kill a process, close its pipes and return its exit status."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:  # what was still to be written cannot be
            pass
    return process.wait()


_pool = Pool()
_grades: dict[tuple[str, str], float] = {}


def math_verify(answers: Sequence[tuple[str, str]], seconds: float, pool: Pool = _pool) -> list[float | None]:
    """1 if the last boxed expression of a reply is equivalent to its gold answer, else 0; None if that took more than `seconds` of CPU time.

    answers: pairs (reply, gold). Grades them in parallel. Remembers grades, but not that an answer took too long.
    """
    pairs, known = _known(answers)
    open_pairs = [pair for pair in dict.fromkeys(pairs) if pair not in known]
    found = dict(zip(open_pairs, pool.grade(open_pairs, seconds), strict=True))
    if len(_grades) + len(found) > CACHED:
        _grades.clear()
    _grades.update({pair: grade for pair, grade in found.items() if grade is not None})
    return [known[pair] if pair in known else found[pair] for pair in pairs]


def begin_math_verify(answers: Sequence[tuple[str, str]], seconds: float, pool: Pool = _pool) -> None:
    """Begin to grade what `math_verify` will be asked for, without waiting. Call it now and then, with nothing new too: workers get their next answers."""
    pairs, known = _known(answers)
    pool.begin([pair for pair in pairs if pair not in known], seconds)


def _known(answers: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], dict[tuple[str, str], float]]:
    """Pairs (boxed, gold) of pairs (reply, gold), and the grades that need no worker."""
    pairs = [((last_boxed(reply) or "").strip(), gold.strip()) for reply, gold in answers]
    return pairs, {pair: grade for pair in pairs if (grade := _grades.get(pair, at_once(*pair))) is not None}


def at_once(boxed: str, gold: str) -> float | None:
    """The grade where no library is needed: empty, overlong and equal texts, and whole numbers. Else None."""
    if not boxed or not gold or len(boxed) > LONGEST:
        return 0.0
    if boxed == gold:
        return 1.0
    whole = all(text.removeprefix("-").isascii() and text.removeprefix("-").isdecimal() for text in (boxed, gold))
    return float(int(boxed) == int(gold)) if whole else None
