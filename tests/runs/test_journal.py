"""The journal: valid JSON whatever the numbers, cut at the checkpoint, and without what a longer run would not have written."""

import json
import math
import os
import time

import pytest

from mth.foundations.errors import UserError
from mth.runs.checkpoint import checkpoint_path
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry, Journal, damaged_lines, is_due, read_journal, without_evaluation
from mth.runs.search import copy_beginning
from tests.conftest import claim, make_config

EVALUATION = {"eval/arithmetic/pass_at_1": 0.5, "eval/arithmetic/reward": 0.6, "seconds/evaluation": 2.0}


def test_numbers_that_json_lacks_are_valid_json_and_read_back(tmp_path):
    journal = Journal(tmp_path, -1)
    journal.append(1, {"loss": math.nan, "grad_norm": math.inf, "kl": -math.inf, "entropy": 0.1}, {"arithmetic": [0.0, math.nan]})
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    for found in (read_journal(tmp_path), Journal(tmp_path, 1).entries, read_journal(tmp_path)):
        (entry,) = found
        assert math.isnan(entry.metrics["loss"]) and math.isnan(entry.rewards["arithmetic"][1])
        assert (entry.metrics["grad_norm"], entry.metrics["kl"], entry.metrics["entropy"]) == (math.inf, -math.inf, 0.1)


def test_a_journal_of_an_earlier_version_with_bare_nan_is_read(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"step": 1, "time": 5, "metrics": {"loss": NaN, "grad_norm": Infinity}}\n')
    (entry,) = read_journal(tmp_path)
    assert math.isnan(entry.metrics["loss"])
    assert (entry.step, entry.time, entry.metrics["grad_norm"], entry.rewards) == (1, 5, math.inf, {})


DAMAGE = {
    "cut": b'{"step": 2, "ti',
    "no JSON": b"garbage",
    "no UTF-8": b'{"step": 2, "time": 0, "metrics": {"\xff": 1}}',
    "no object": b"[2]",
    "no number": b'{"step": "two", "time": 0, "metrics": {}}',
    "no metrics": b'{"step": 2, "time": 0}',
    "a list of metrics": b'{"step": 2, "time": 0, "metrics": 5}',
    "text for a number": b'{"step": 2, "time": 0, "metrics": {"reward/mean": "high"}}',
    "text for a reward": b'{"step": 2, "time": 0, "metrics": {}, "rewards": {"arithmetic": [1, "x"]}}',
    "no list of rewards": b'{"step": 2, "time": 0, "metrics": {}, "rewards": {"arithmetic": 1}}',
    "nested": b"[" * 100_000,
    "a step that is not a number": b'{"step": "NaN", "time": 0, "metrics": {}}',
    "half a step": b'{"step": 1.5, "time": 0, "metrics": {}}',
    "a step without end": b'{"step": "Infinity", "time": 0, "metrics": {}}',
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named_and_set_aside_and_the_steps_after_it_stay(tmp_path, damage, capsys):
    lines = [f'{{"step": {step}, "time": {step}, "metrics": {{}}}}'.encode() for step in range(5)]
    lines[2] = DAMAGE[damage]
    (tmp_path / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert [entry.step for entry in read_journal(tmp_path)] == [0, 1, 3, 4]
    assert damaged_lines(tmp_path) == {3: DAMAGE[damage]}
    journal = Journal(tmp_path, 3)
    assert "journal.jsonl: line 3 cannot be read and was moved to journal.damaged.jsonl" in capsys.readouterr().err
    assert (tmp_path / "journal.damaged.jsonl").read_bytes() == DAMAGE[damage] + b"\n"
    journal.append(4, {})
    assert [entry.step for entry in read_journal(tmp_path)] == [0, 1, 3, 4]
    assert damaged_lines(tmp_path) == {}


def test_a_journal_that_ends_before_the_checkpoint_is_refused_and_kept(tmp_path):
    text = "".join(f'{{"step": {step}, "time": 0, "metrics": {{}}}}\n' for step in range(3))
    (tmp_path / "journal.jsonl").write_text(text)
    with pytest.raises(
        UserError, match=r"ends at step 2, before the checkpoint of step 4; put it back, remove the checkpoints after step 2"
    ):
        Journal(tmp_path, 4)
    assert (tmp_path / "journal.jsonl").read_text() == text
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds no step, before the checkpoint of step 4; put it back, or give force=true"):
        Journal(tmp_path, 4)
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_repeated_step_keeps_the_time_of_its_first_writing(tmp_path):
    """In milliseconds, also where the clock has gone on, or back."""
    (tmp_path / "journal.jsonl").write_text("".join(f'{{"step": {step}, "time": {10 + step}, "metrics": {{}}}}\n' for step in range(3)))
    journal, now = Journal(tmp_path, 1), time.time() * 1000
    assert [journal.append(step, {}).time for step in (2,)] == [12]
    assert abs(journal.append(3, {}).time - now) < 60_000
    assert [entry.time for entry in read_journal(tmp_path)][:3] == [10, 11, 12]


def test_every_line_is_on_disk_before_the_step_counts_as_done(tmp_path, monkeypatch):
    journal, synced = Journal(tmp_path, -1), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    for step in range(2):
        journal.append(step, {"loss": 0.5})
        assert synced == [*synced[:step], journal.path.stat().st_size]


def test_what_is_due():
    assert [step for step in range(8) if is_due(step, 3)] == [0, 3, 6]
    assert not any(is_due(step, 0) for step in range(8))


def test_an_entry_without_its_evaluation():
    entry = Entry(6, 1, {"loss": 0.1, "seconds/update": 1.0, **EVALUATION}, {"arithmetic": [1.0]})
    assert without_evaluation(entry) == Entry(6, 1, {"loss": 0.1, "seconds/update": 1.0})


@pytest.mark.parametrize(
    ("every", "stop", "status", "kept"),
    [
        (3, False, "finished", True),
        (4, False, "finished", False),
        (0, False, "finished", False),
        (4, True, "collapsed", True),
        (4, False, "collapsed", False),
        (4, True, "finished", False),
    ],
)
def test_a_longer_run_takes_over_the_last_evaluation_only_if_it_makes_one_at_that_step(tmp_path, every, stop, status, kept):
    """Six steps, continued to nine: step 6 is evaluated because it was the last."""
    changes = {"eval": {"every": every}, "collapse": {"stop": stop}}
    short, wanted = make_config(train={"steps": 6}, **changes), make_config(train={"steps": 9}, **changes)
    claim(tmp_path / "short", short)
    folder = RunFolder(tmp_path / "short")
    journal = Journal(folder.path, -1)
    journal.append(0, EVALUATION, {"arithmetic": [1.0]})
    for step in range(1, 7):
        journal.append(step, {"loss": 0.1} | (EVALUATION if step in (4, 6) else {}), {"arithmetic": [1.0]} if step in (4, 6) else {})
    folder.summary_file.write_text(json.dumps({"status": status, "steps": 6}))
    last = checkpoint_path(folder.path, 6)
    last.parent.mkdir()
    last.write_bytes(b"")
    copy_beginning(folder.path, tmp_path / "long", wanted)
    old, new = read_journal(folder.path), read_journal(tmp_path / "long")
    assert new == (old if kept else [*old[:-1], without_evaluation(old[-1])])
    assert new[4].metrics == {"loss": 0.1, **EVALUATION}
