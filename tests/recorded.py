"""Real runs of the embedded model, recorded in one file without their checkpoints, gradients and most metrics.

python -m tests.recorded FOLDER    records the finished runs of FOLDER anew. What was run is in tests/data/README.md.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

from mth.analysis.runs import read_run, run_folders
from mth.config import to_plain
from mth.files import read_json

FILE = Path(__file__).parent / "data" / "recorded_runs.json"
KEPT = ("eval/", "reward/mean", "entropy", "grad_norm")


def record(source: Path) -> None:
    runs = {}
    for path in run_folders(source):
        run = read_run(path, source)
        if run.done:
            journal = [[e.step, {key: value for key, value in e.metrics.items() if key.startswith(KEPT)}] for e in run.entries]
            spectrum = {name: read_json(path / "spectrum" / name) for name in ("collection.json", "gram.json", "theory.json")}
            runs[run.name] = {
                "config": to_plain(run.config) | {"run_dir": None, "detach": False},
                "journal": journal,
                "summary": run.facts,
                "run": {"code": read_json(path / "run.json").get("code")},
                "spectrum": {name: data for name, data in spectrum.items() if data},
            }
    lines = [f"{json.dumps(name)}: {json.dumps(data)}" for name, data in sorted(runs.items())]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(runs)} runs, {FILE.stat().st_size / 1024:.0f} KiB")


def unpack(folder: Path) -> Path:
    """Run folders as the recorded runs left them, but for what was not kept."""
    for name, data in json.loads(FILE.read_text()).items():
        place = folder / name
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(data["config"])))
        (place / "journal.jsonl").write_text(
            "".join(json.dumps({"step": step, "time": 0, "metrics": metrics}) + "\n" for step, metrics in data["journal"])
        )
        (place / "summary.json").write_text(json.dumps(data["summary"]))
        (place / "run.json").write_text(json.dumps(data["run"]))
        for file, content in data["spectrum"].items():
            (place / "spectrum").mkdir(exist_ok=True)
            (place / "spectrum" / file).write_text(json.dumps(content))
    return folder


if __name__ == "__main__":
    record(Path(sys.argv[1]))
