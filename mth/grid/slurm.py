"""Cells as SLURM jobs through submitit, and what SLURM says of them."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mth.foundations.errors import UserError
from mth.grid.record import Grid, GridCell, log_event

ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "RESIZING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
PASSED_ON = ("partition", "account", "qos", "constraint", "gpus_per_node")


class Job:
    """The function that submitit pickles, by reference: a job imports it from the frozen code. A requeued job starts again from the files."""

    def __call__(self, run_dir: str, grid_dir: str) -> None:
        from mth.grid.worker import run_cell

        run_cell(Path(run_dir), Path(grid_dir))

    def checkpoint(self, run_dir: str, grid_dir: str) -> Any:
        """What submitit runs after a requeue: the same, with as many requeues left as before."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run_dir, grid_dir)


@dataclass(frozen=True)
class JobState:
    state: str
    node: str = ""
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def submit(grid: Grid, cells: list[GridCell]) -> None:
    """Submit one array per set of equal launcher settings. Raises UserError with sbatch's own words if it refuses."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm: no sbatch on this machine; start from a login node of the cluster, or use hydra/launcher=local"
        )
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    where = {"chdir": str(grid.cwd)} if grid.cwd.is_dir() else {}
    arrays: dict[str, list[GridCell]] = {}
    for cell in cells:
        arrays.setdefault(repr(sorted(cell.launcher.items(), key=str)), []).append(cell)
    for alike in arrays.values():
        settings = alike[0].launcher
        executor = submitit.SlurmExecutor(folder=grid.folder / "slurm", max_num_timeout=settings["max_num_timeout"])
        executor.update_parameters(
            job_name=f"mth-{grid.folder.name}",
            time=settings["timeout_min"],
            nodes=1,
            ntasks_per_node=1,
            cpus_per_task=settings["cpus_per_task"],
            mem=f"{round(settings['mem_gb'] * 1024)}MB",
            array_parallelism=settings["array_parallelism"],
            signal_delay_s=settings["signal_delay_s"],
            stderr_to_stdout=True,
            setup=[
                *setup_lines(settings["setup"]),
                f"export PYTHONPATH={shlex.quote(str(grid.code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",  # the frozen code first
                "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}",
            ],
            additional_parameters={"requeue": True} | where | settings["additional_parameters"],
            **{key: settings[key] for key in PASSED_ON if settings[key] is not None},
        )
        try:
            jobs = executor.map_array(Job(), [str(cell.dir) for cell in alike], [str(grid.folder)] * len(alike))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            said = " ".join(str(getattr(error, "stderr", "") or error.__cause__ or error).split())
            raise UserError(f"sbatch refused {len(alike)} of {len(cells)} cells: {said[-300:]}") from error
        ids = {cell.name: job.job_id for cell, job in zip(alike, jobs, strict=True)}
        log_event(grid.folder, "submitted", cells=list(ids), jobs=ids)


SETUP_FAULT = "error: hydra.launcher.setup: "


def setup_lines(lines: list[str]) -> list[str]:
    """The lines of `hydra.launcher.setup` as a script in which a line that fails ends the job and says which line it was.

    Lines that make one command together, as `if ...; then` and what follows, are checked at its end.
    """
    script: list[str] = []
    command: list[str] = []
    for line in lines:
        script.append(line)
        command.append(line)
        if _is_whole("\n".join(command)):
            script.append(f"mth_check $? {shlex.quote('; '.join(command))}")
            command = []
    check = f'mth_check() {{ [ "$1" -eq 0 ] || {{ echo "{SETUP_FAULT}$2 (exit status $1)"; exit "$1"; }}; }}'
    return [check, *script] if script else []


def _is_whole(command: str) -> bool:
    if command.rstrip().endswith("\\"):
        return False
    read = subprocess.run(["bash", "-n"], input=command + "\n", capture_output=True, text=True)
    return read.returncode == 0 and not read.stderr  # it only warns of a text that has no end


def setup_fault(log: Path) -> str | None:
    """The line of `hydra.launcher.setup` that ended a job, from the job's output; None if none did."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.removeprefix("error: ") for line in lines if line.startswith(SETUP_FAULT)), None)


def log_path(grid: Grid, job: str) -> Path:
    """Where submitit puts the output of a job."""
    return grid.folder / "slurm" / f"{job}_0_log.out"


def query(jobs: Iterable[str]) -> dict[str, JobState]:
    """State of these jobs: from the queue first, then from accounting. Jobs that SLURM does not know are left out."""
    wanted = set(jobs)
    if not wanted:
        return {}
    found: dict[str, JobState] = {}
    for line in _lines("squeue", "-h", "-r", "--me", "-o", "%i|%T|%N|%r"):
        job, state, node, reason = line.split("|", 3)
        if job in wanted:
            found[job] = JobState(state, node, "" if reason == "None" else reason)
    forgotten = wanted - found.keys()
    if forgotten:
        parents = ",".join(sorted({job.split("_")[0] for job in forgotten}))
        for line in _lines("sacct", "-n", "-X", "-P", "-j", parents, "-o", "JobID,State,NodeList"):
            job, state, node = line.split("|", 2)
            for name in _expand(job):
                if name in forgotten:
                    found[name] = JobState(state.split()[0], "" if node == "None assigned" else node)
    return found


def answers() -> bool:
    """Whether SLURM answers; True if there is no SLURM."""
    try:
        return subprocess.run(["squeue", "-h", "--me"], capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False
    except OSError:
        return True


def cancel(running: Iterable[str], waiting: Iterable[str]) -> None:
    """Ask running jobs to save and end, and take waiting ones out of the queue."""
    if running := list(running):
        subprocess.run(["scancel", "--signal=INT", *running], check=False)
    if waiting := list(waiting):
        subprocess.run(["scancel", *waiting], check=False)


def _lines(*command: str) -> list[str]:
    """Output of a SLURM command; nothing if it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"SLURM_TIME_FORMAT": "standard"})
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in result.stdout.splitlines() if "|" in line]


def _expand(job: str) -> list[str]:
    """Expand sacct's name for waiting cells of an array, `12_[0-2,5%4]`."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if match is None:
        return [job]
    numbers: list[int] = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [f"{match[1]}_{number}" for number in numbers]
