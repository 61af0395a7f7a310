"""Measures mth on a GPU: python benchmarks/gpu.py [--only SECTION,...] [--minutes 8] [--out FOLDER] [--device cuda] [--tiny]

Sections run in order of importance, one at a time, each in a process of its own. The next ones load meanwhile and wait for their turn. A section
has a time limit, which counts from its turn; what does not fit into the minutes is left out. Weights are random in the real shapes, so
nothing is downloaded. Each measurement is one JSON line, printed and written to gpu.jsonl as it comes. At the end gpu.md has the tables.
--device cpu --tiny runs every section on tiny shapes, to see that it works; its times mean nothing.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMITS = {  # seconds
    "works": 110,
    "ceilings": 20,
    "step-1.5b": 130,
    "head": 45,
    "attention": 45,
    "packing": 40,
    "decoding": 70,
    "graphs": 90,
    "ticket": 30,
    "kernel": 45,
    "step-0.5b": 90,
    "vllm": 150,
    "vllm-step": 150,
    "trl": 90,
    "cells": 90,
}
READY = "ready"


class Section:
    """A section's process. lines: what it printed, None at its end."""

    def __init__(self, name: str, flags: list[str]) -> None:
        self.name = name
        self.lines: queue.Queue[str | None] = queue.Queue()
        settings = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
        if "cpu" in flags:
            settings["TRITON_INTERPRET"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_sections.py"), name, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | settings,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def run(self, limit: float) -> list[dict[str, Any]]:
        """Give it its turn, print and return its measurements. The limit, in seconds, does not count what it still has to load."""
        rows, last = [], ""
        deadline = time.monotonic() + 300  # to load
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                rows.append(self._failure(f"stopped after its {limit:.0f} seconds"))
                break
            if line is None:
                if self.process.wait() != 0:
                    rows.append(self._failure(last or f"exit status {self.process.returncode}"))
                break
            if line.strip() == READY:
                self._go()
                deadline = time.monotonic() + limit
            elif line.startswith("{"):
                rows.append(json.loads(line))
                print(line, end="", flush=True)
            else:
                last = line.strip() or last
        self.close()
        return rows

    def _go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def _failure(self, why: str) -> dict[str, Any]:
        row = {"section": self.name, "what": "failed", "why": why[:300]}
        print(json.dumps(row), flush=True)
        return row

    def close(self) -> None:
        """End the process and its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure(names: list[str], flags: list[str], seconds: float, file: Path) -> list[dict[str, Any]]:
    """Run the sections one after another. Appends each section's measurements to the file."""
    end = time.monotonic() + seconds
    ahead = max(1, (os.cpu_count() or 1) // 4)  # sections that load at a time
    waiting, loaded, rows = list(names), [], []
    try:
        while waiting or loaded:
            while waiting and len(loaded) <= ahead:
                loaded.append(Section(waiting.pop(0), flags))
            section, left = loaded.pop(0), end - time.monotonic()
            if left < 5:
                section.close()
                rows.append({"section": section.name, "what": "left out", "why": "no time was left; --minutes gives more"})
                print(json.dumps(rows[-1]), flush=True)
                continue
            found = section.run(min(left, LIMITS[section.name]))
            with open(file, "a") as out:
                out.writelines(json.dumps(row) + "\n" for row in found)
            rows += found
    finally:
        for section in loaded:
            section.close()
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table per section and kind of measurement, whose columns are the keys of its rows. The last one has the sections' seconds."""
    parts = []
    order = dict.fromkeys(
        (row["what"] == "section", "" if row["what"] == "section" else row["section"], row["what"], tuple(row)) for row in rows
    )
    for last, section, what, keys in sorted(order, key=lambda kind: kind[0]):
        own = [row for row in rows if tuple(row) == keys and row["what"] == what and (last or row["section"] == section)]
        heads = [key for key in keys if key != "what" and (last or key != "section")]
        cells = [heads, ["---"] * len(heads), *([str(row[key]) for key in heads] for row in own)]
        parts += ["## Seconds" if last else f"## {section}: {what}", "\n".join(f"| {' | '.join(line)} |" for line in cells)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sections, with commas between them: " + ", ".join(LIMITS))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of gpu.jsonl and gpu.md")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(LIMITS)
    if unknown := [name for name in names if name not in LIMITS]:
        parser.error(f"--only={unknown[0]}: no such section; choose from {', '.join(LIMITS)}")
    flags = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gpu.jsonl"
    file.write_text("")
    rows = measure(names, flags, 60 * options.minutes, file)
    note = "\nTiny shapes: the times mean nothing.\n" if options.tiny else ""
    text = f"# mth on a GPU\n{note}\n{tables(rows)}\n"
    (options.out / "gpu.md").write_text(text)
    print(text)
    if all(row["what"] in ("failed", "left out") for row in rows):
        sys.exit(f"nothing was measured; {file} says why")


if __name__ == "__main__":
    main()
