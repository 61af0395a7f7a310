"""Starts cells without their start-up: a process imports and loads what cells share, and runs each cell in a fork of itself.

`Resident` is the launcher's side. The process is python -m mth.grid.resident <file descriptor of the pipe>. A fork costs milliseconds, shares
the model's memory with its siblings, and is a process of its own: it begins as a cell alone would, and takes only itself along when it fails.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from mth.config.schema import Config
from mth.foundations.output import prepare_output
from mth.runs.folder import RunFolder

HARMLESS = frozenset({"jemalloc_bg_thd"})  # threads of libraries that prepare themselves for a fork
QUIET = {  # until the fork
    "TOKENIZERS_PARALLELISM": "false",  # loading a tokenizer then starts no threads,
    "OPENBLAS_NUM_THREADS": "1",  # nor does importing numpy
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a library that asks for a GPU while it is imported would start CUDA, which no fork could use
}
NEVER_STARTED = 255  # exit status of a cell whose resident ended before it forked; no cell ends with it
LOST = -signal.SIGKILL  # exit status of a cell whose resident is gone; who ends both is the system, out of memory
POLL_S = 0.1


@dataclass(frozen=True)
class Job:
    """A cell to run: the folders of the run and of its grid, and the environment variables of its slot."""

    run_dir: Path
    grid_dir: Path
    variables: dict[str, str]


def fits(config: Config) -> bool:
    """Whether a cell can be forked. vLLM starts processes and threads of its own, and decides on a device while it is imported."""
    return config.rollout.engine != "vllm"


class Fork:
    """A cell that a resident was asked to run. As subprocess.Popen: `poll`, `returncode`, `terminate`."""

    def __init__(self, resident: "Resident") -> None:
        self.resident = resident
        self.pid: int | None = None
        self.returncode: int | None = None
        self.unwanted = False

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the cell runs."""
        self.resident.read()
        if self.unwanted and self.pid and self.returncode is None:
            self.unwanted = False
            self.terminate()
        if self.resident.gone and self.returncode is None and not (self.pid and _lives(self.pid)):
            self.returncode = LOST if self.pid else NEVER_STARTED
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, or do so as soon as the cell has started."""
        if self.pid is None:
            self.unwanted = True
        elif self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


class Resident:
    """The launcher's handle on a resident process.

    env, cwd: of the cells. log: file that takes what the process itself prints. The process has a session of its own. It ends when the
    launcher ends or calls `close`; the cells that it has forked go on.
    """

    def __init__(self, env: dict[str, str], cwd: Path | None, log: Path) -> None:
        self.connection, theirs = Pipe()
        with open(log, "ab") as output, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "mth.grid.resident", str(theirs.fileno())],
                env=env | QUIET,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        self.forks: list[Fork] = []
        self.gone = False

    def start(self, job: Job) -> Fork:
        """Ask for a cell. Returns at once, before the cell has started."""
        fork = Fork(self)
        self.forks.append(fork)
        theirs = {key: os.environ[key] for key in QUIET if key in os.environ}  # the user's own
        try:
            self.connection.send((len(self.forks) - 1, replace(job, variables=theirs | job.variables)))
        except OSError:
            self.gone = True
        return fork

    def read(self) -> None:
        """Take in what the process has said: which cells have started and which have ended."""
        try:
            while not self.gone and self.connection.poll():
                number, field, value = self.connection.recv()
                setattr(self.forks[number], field, value)
        except (EOFError, OSError):
            self.gone = True
        if self.gone:
            self.process.poll()

    def close(self) -> None:
        """End the process. What it has forked goes on, what it has not is never started."""
        self.connection.close()
        self.process.terminate()
        self.process.wait()
        self.gone = True


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def serve(connection: Connection) -> Job | None:
    """Fork a cell for every job that comes. Returns its job in each fork. Returns None once the launcher is gone, or no fork is possible."""
    children: dict[int, int] = {}  # pid -> number of the job
    while True:
        try:
            if wait([connection], POLL_S):
                number, job = connection.recv()
                load(RunFolder(job.run_dir).config())
                refuse_threads()
                gc.freeze()  # a collection in the fork, as at its end, would copy the memory of everything that is loaded
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    return job
                children[pid] = number
                connection.send((number, "pid", pid))
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    connection.send((children.pop(pid), "returncode", os.waitstatus_to_exitcode(status)))
        except (EOFError, ConnectionError):
            return None
        except OSError as error:
            print(f"cannot fork ({error}); each cell gets a process of its own")
            return None


def load(config: Config) -> None:
    """Import what the cell imports, and load its model unless it is there. A model that cannot be loaded is left to the cell, which says why."""
    import mth.training.loop  # noqa: F401
    from mth.models.load import keep_model
    from mth.tasks import eval_sections, module_of

    if "mlflow" in config.tracker.chosen:
        import mlflow  # noqa: F401
    try:
        for section in (config.task, *eval_sections(config).values()):
            module_of(section or config.task)
        keep_model(config.model)
    except Exception as error:
        print(f"{config.label}: not loaded ahead ({error})")


def refuse_threads() -> None:
    """End the process if it has threads, which a fork would lose: the launcher then starts each cell as a process of its own."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end while it is looked at
            names += [Path(f"/proc/self/task/{task}/comm").read_text().strip()] if int(task) != os.getpid() else []
    if threading.active_count() > 1 or not HARMLESS.issuperset(names):
        raise SystemExit(f"cannot fork beside the threads {', '.join(names)}; each cell gets a process of its own")


def become(job: Job) -> None:
    """Turn this fork into the process of its cell: session, environment, output."""
    os.setsid()
    for key in QUIET:
        os.environ.pop(key)
    os.environ.update(job.variables)
    log = os.open(RunFolder(job.run_dir).log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def main(descriptor: int) -> None:
    prepare_output()
    import tqdm

    monitor, tqdm.tqdm.monitor_interval = tqdm.tqdm.monitor_interval, 0  # a progress bar then starts no thread either
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    job = serve(Connection(descriptor))
    if job is None:
        return
    become(job)
    tqdm.tqdm.monitor_interval = monitor
    torch.set_num_threads(threads)
    from mth.grid.worker import run_cell

    run_cell(job.run_dir, job.grid_dir)


if __name__ == "__main__":
    main(int(sys.argv[1]))
