"""Real runs of the embedded model, recorded in one file without checkpoints, gradients and most metrics.

python -m tests.recorded FOLDER    records the finished runs of FOLDER anew; tests/data/README.md says what was run.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

from mth.analysis.sources import read_run
from mth.config.stored import to_plain
from mth.foundations.files import read_json
from mth.runs.folder import RunFolder
from mth.runs.search import run_folders

FILE = Path(__file__).parent / "data" / "recorded_runs.json"
KEPT = ("eval/", "reward/mean", "entropy", "grad_norm")


def record(source: Path) -> None:
    runs = {}
    for path in run_folders(source):
        run = read_run(path, source)
        if run.done:
            journal = [[e.step, {key: value for key, value in e.metrics.items() if key.startswith(KEPT)}] for e in run.entries]
            folder = RunFolder(path)
            spectrum = {name: read_json(folder.gradients / name) for name in ("collection.json", "gram.json", "theory.json")}
            runs[run.name] = {
                "config": to_plain(run.config) | {"run_dir": None, "detach": False},
                "journal": journal,
                "summary": run.summary.to_json(),
                "run": {"code": folder.record().get("code")},
                "spectrum": {name: data for name, data in spectrum.items() if data},
            }
    lines = [f"{json.dumps(name)}: {json.dumps(data)}" for name, data in sorted(runs.items())]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(runs)} runs, {FILE.stat().st_size / 1024:.0f} KiB")


def unpack(folder: Path) -> Path:
    """Write the recorded runs as run folders below `folder`; returns it."""
    for name, data in json.loads(FILE.read_text()).items():
        run = RunFolder(folder / name)
        run.path.mkdir(parents=True)
        run.config_file.write_text(OmegaConf.to_yaml(OmegaConf.create(data["config"])))
        run.journal_file.write_text(
            "".join(json.dumps({"step": step, "time": 0, "metrics": metrics}) + "\n" for step, metrics in data["journal"])
        )
        run.summary_file.write_text(json.dumps(data["summary"]))
        run.record_file.write_text(json.dumps(data["run"]))
        for file, content in data["spectrum"].items():
            run.gradients.mkdir(exist_ok=True)
            (run.gradients / file).write_text(json.dumps(content))
    return folder


if __name__ == "__main__":
    record(Path(sys.argv[1]))
