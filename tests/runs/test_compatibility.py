"""A run folder that commit 9095324 left after three of four steps resumes with today's code."""

import json
import shutil
from pathlib import Path

import pytest

from mth.config.identity import identity
from mth.runs.checkpoint import checkpoints_of, load_checkpoint
from mth.runs.folder import RunFolder
from mth.runs.journal import read_journal
from mth.training.loop import train

DATA = Path(__file__).parents[1] / "data"
PINS = json.loads((DATA / "pins.json").read_text())


@pytest.mark.cpu
def test_an_old_run_folder_resumes(tmp_path):
    """Step 4 starts from the old checkpoint. Another processor rounds differently, so its metrics are only close."""
    old = tmp_path / "run"
    shutil.copytree(DATA / "run_9095324", old)
    config = RunFolder(old).config()
    assert identity(config) == RunFolder(old).record()["identity"]
    written = [path.read_bytes() for path in sorted((old / "spectrum").glob("step_*.bin"))]
    summary = train(config, old, tmp_path)
    assert (summary.status, summary.steps) == ("finished", 4)
    assert RunFolder(old).record()["starts"] == 2
    entries, pinned = read_journal(old), PINS["journal"]
    assert [(e.step, e.time, e.metrics) for e in entries[:4]] == [(e["step"], e["time"], e["metrics"]) for e in pinned[:4]]
    got, want = entries[4].metrics, pinned[4]["metrics"]
    assert got.keys() >= want.keys()
    assert got["reward/mean"] == pytest.approx(want["reward/mean"], abs=0.3)
    assert got["entropy"] == pytest.approx(want["entropy"], rel=0.5)
    assert got["learning_rate"] == want["learning_rate"]
    assert [path.read_bytes() for path in sorted((old / "spectrum").glob("step_*.bin"))][:3] == written
    checkpoint = load_checkpoint(checkpoints_of(old)[-1])
    assert sorted(checkpoint.tensors) == PINS["checkpoint"]["tensors"]
    assert sorted(checkpoint.header) == PINS["checkpoint"]["header"]
    assert (
        sorted(str(path.relative_to(old)) for path in old.rglob("*") if path.is_file() and path.parent.name != "samples")
        == PINS["run_folder"]
    )
    assert set(RunFolder(old).record()) >= set(PINS["run_json"])
    assert set(json.loads((old / "summary.json").read_text())) >= set(PINS["summary"])
