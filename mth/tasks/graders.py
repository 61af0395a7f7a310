"""Grades a boxed answer: by exact text, or by mathematical equivalence with the math-verify library under a time limit."""

import atexit
import json
import select
import subprocess
import sys
from functools import lru_cache

from mth.foundations.errors import UserError
from mth.tasks.extraction import last_boxed


def strict(reply: str, gold: str) -> float:
    """1 if the boxed text equals the gold answer, apart from surrounding spaces. The published GSM8K run used this grader."""
    boxed = last_boxed(reply)
    return float(boxed is not None and boxed.strip() == gold.strip())


class MathVerifier:
    """Runs math-verify in a separate process and kills it if an answer takes too long. sympy can hang without reacting to signals."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "mth.tasks.math_worker")) -> None:
        self.command = command
        self.process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def grade(self, reply: str, gold: str, timeout: float) -> float:
        """1 if the last boxed expression is equivalent to `gold`, else 0. A timeout counts 0. timeout: in seconds."""
        boxed = last_boxed(reply)
        if boxed is None:
            return 0.0
        if self.process is None or self.process.poll() is not None:
            # A new session: Ctrl-C on the training run must not kill the worker and turn a correct answer into 0.
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            )
            if self._readline(120.0).strip() != "ready":
                raise UserError("task.grader: the math-verify process does not start; is the package math-verify installed?")
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([boxed, gold]) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.close()
            return 0.0
        return float(self._readline(timeout).strip() == "1")

    def _readline(self, timeout: float) -> str:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
        return line

    def close(self) -> None:
        """Kill the worker process. The next call starts a new one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


_verifier = MathVerifier()


@lru_cache(maxsize=65536)
def math_verify(reply: str, gold: str, timeout: float) -> float:
    """See MathVerifier.grade. Caches grades."""
    return _verifier.grade(reply, gold, timeout)
