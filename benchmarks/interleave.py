"""Times steps of several programs side by side. Each program is a process, and they take turns, one step each.

A program calls `take_turns(step)`. The others sleep meanwhile, so a disturbance of the machine affects all of them alike. Memory is measured
per process. `measure` starts the programs and returns a table with one row per step; `report` writes tables as Markdown and CSV.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results"
REPLY = "reply: "


def resident(key: str) -> int:
    """Bytes of a key of /proc/self/status: VmRSS is resident now, VmHWM the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


class Memory:
    """Peak bytes above the usage at construction: of tensors on a GPU, else of the whole process."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
        else:
            self.base = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here

    def peak(self) -> int:
        return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM")) - self.base


def wait_for_turn() -> bool:
    """Block until it is this program's turn. Returns False if there are no more steps."""
    return sys.stdin.readline().strip() == "go"


def reply(**figures: float) -> None:
    print(REPLY + json.dumps(figures), flush=True)


def take_turns(step: Callable[[], dict[str, float] | None], memory: Memory) -> None:
    """Run `step` on request. Reports seconds, peak memory so far, and what the step returns."""
    reply(ready=1)
    while wait_for_turn():
        start = time.perf_counter()
        more = step() or {}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        reply(seconds=time.perf_counter() - start, memory=memory.peak(), **more)


def measure(programs: Mapping[str, Sequence[str]], rounds: int, beside: str | None = None) -> pd.DataFrame:
    """Rows (program, round, seconds, memory, ...) of `rounds` steps of each program in the order of the steps, after a warm-up step.

    beside: a program that takes a step before and after each step of the others, so that a temporary slowdown of the machine affects both.
    Prints the last output of a program that fails, and continues with the others.
    """
    running: dict[str, subprocess.Popen[str]] = {}
    rows = []
    for name, arguments in programs.items():
        running[name] = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _answer(name, running)
    for turn in range(rounds + 1):
        others = [name for name in running if name != beside]
        steps = others if beside is None else [beside, *(name for other in others for name in (other, beside))]
        for name in steps:
            if name not in running:
                continue
            print(f"\r{turn}/{rounds} {name:<70}", end="", file=sys.stderr, flush=True)
            _write(running[name], "go")
            figures = _answer(name, running)
            if figures and turn:
                rows.append({"program": name, "round": turn, **figures})
    print(f"\r{'':<80}\r", end="", file=sys.stderr)
    for process in running.values():
        _write(process, "end")
        process.wait(60)
    return pd.DataFrame(rows)


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass


def _answer(name: str, running: dict[str, subprocess.Popen[str]]) -> dict[str, float]:
    assert running[name].stdout is not None
    last = ""
    for line in running[name].stdout:  # type: ignore[union-attr]
        if line.startswith(REPLY):
            return json.loads(line.removeprefix(REPLY))
        last = line.strip() or last
    print(f"{name} failed and is left out: {last}", file=sys.stderr)
    del running[name]
    return {}


def summarize(measured: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row per program: median and range of the seconds, median and spread of the ratio to the baseline, memory.

    A ratio divides by the mean of the baseline's steps before and after in the same round, or by the only one.
    """
    order = list(dict.fromkeys(measured["program"]))
    of_baseline = measured["seconds"].where(measured["program"] == baseline).groupby(measured["round"])
    ratios = measured["seconds"] / pd.concat([of_baseline.ffill(), of_baseline.bfill()], axis=1).mean(axis=1)
    by_program = measured.assign(ratio=ratios).groupby("program")
    seconds = by_program["seconds"]
    return pd.DataFrame(
        {
            "method": order,
            "seconds": seconds.median()[order].round(4).to_numpy(),
            "range": [f"{seconds.min()[name]:.3g} to {seconds.max()[name]:.3g}" for name in order],
            f"times {baseline}": by_program["ratio"].median()[order].round(3).to_numpy(),
            "spread": [f"{by_program['ratio'].min()[name]:.2f} to {by_program['ratio'].max()[name]:.2f}" for name in order],
            "MiB above the model": (by_program["memory"].max()[order] / 2**20).round().astype(int).to_numpy(),
        }
    )


def machine() -> str:
    """Processor or GPU, threads, and versions of the libraries."""
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
        where = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, not measured on a GPU"
    return f"{where}; {versions('torch', 'transformers', 'peft', 'trl')}; Python {platform.python_version()}"


def versions(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def report(name: str, title: str, tables: Mapping[str, pd.DataFrame], explanation: str) -> None:
    """Write `results/<name>.md` and `.csv`, and print the tables."""
    RESULTS.mkdir(exist_ok=True)
    parts = [f"# {title}", explanation, f"Machine: {machine()}."]
    for heading, table in tables.items():
        parts.append(f"## {heading}\n\n{markdown(table)}" if heading else markdown(table))
    text = "\n\n".join(parts) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    pd.concat([table.assign(setting=heading) for heading, table in tables.items()]).to_csv(RESULTS / f"{name}.csv", index=False)
    print(text)


def markdown(table: pd.DataFrame) -> str:
    head = f"| {' | '.join(table.columns)} |\n|{'|'.join([' --- '] + [' ---: '] * (len(table.columns) - 1))}|"
    return "\n".join([head, *(f"| {' | '.join(str(value) for value in row)} |" for row in table.itertuples(index=False))])
