"""python -m mth.runs: what it lists and finds, how it compares, and what it deletes and never deletes."""

import csv
import io
import json
import os
import re
import shutil

import pytest

from mth.analysis.glance import glance
from mth.foundations.files import read_json, write_json
from mth.grid.cleaning import remove, superseded
from mth.grid.record import Grid, GridCell, hold_launcher, log_event
from mth.runs.__main__ import main
from mth.runs.folder import RunFolder
from mth.runs.lock import lock_folder
from tests.pages import make_run, output_of, write_journal_of


@pytest.fixture
def said(monkeypatch, capsys):
    """Runs the command; returns what it printed. status 2: returns the one line of its error."""

    def call(*arguments, status=0, notes=""):
        output = output_of(main, ["mth.runs", *arguments], monkeypatch, capsys, status)
        if status:
            return output.err
        assert re.fullmatch(notes, output.err, re.DOTALL), output.err
        return output.out

    return call


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Four runs; the last ones are older."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "a", sparsity={"percent": 99.0})
    make_run(root / "grid" / "0-b", sparsity={"percent": 99.9}, lr={"value": 3e-2})
    make_run(
        root / "grid" / "1-c", status="collapsed", mask={"family": "last_layer", "budget": "whole_layer"}, eval={"samples": 16, "every": 3}
    )
    make_run(root / "d", steps=3, status=None, sparsity={"percent": 99.9}, mask_seed=7, seed={"train": 1})
    for hours, name in enumerate(("a", "grid/0-b", "grid/1-c", "d")):
        journal = RunFolder(root / name).journal_file
        os.utime(journal, (journal.stat().st_atime, journal.stat().st_mtime - 3600 * 24 * hours))
    return root


def names(text):
    return [line.split()[0] for line in text.splitlines()[1:-1]]


def test_runs_are_listed_newest_first_with_what_differs(shared, said):
    lines = [line.split("  ") for line in said(shared).splitlines()]
    lines = [[word.strip() for word in line if word.strip()] for line in lines]
    assert lines[0] == ["run", "sparsity", "mask", "mask_seed", "lr", "state", "step", "pass@1", "age"]
    assert lines[1][:8] == ["a", "99", "random", "0", "0.005", "finished", "6/6", "0.000 -> 0.600 ± 0.061"]
    assert re.fullmatch(r"\d+ s", lines[1][8])
    assert [line[0] for line in lines[1:5]] == ["a", "grid/0-b", "grid/1-c", "d"]
    assert lines[3][5] == "collapsed" and lines[4][5:7] == ["unfinished", "3/6"] and lines[4][8] == "3 d"
    assert lines[5:] == [["4 runs"], ["settings that differ too, see --csv: mask.budget, seed, eval.every"]]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["sparsity=99.9"], ["grid/0-b", "d"]),
        (["sparsity=99,99.9"], ["a", "grid/0-b", "grid/1-c", "d"]),
        (["sparsity=99.9", "mask_seed=7"], ["d"]),
        (["lr=3e-2"], ["grid/0-b"]),
        (["lr.value=0.03"], ["grid/0-b"]),
        (["mask=last_layer_whole"], ["grid/1-c"]),
        (["mask.family=last_layer,random", "seed=42"], ["a", "grid/0-b", "grid/1-c"]),
        (["task=arithmetic", "model=tiny", "eval.tasks=arithmetic", "mask=random"], ["a", "grid/0-b", "d"]),
        (["eval.tasks=[arithmetic]", "model.path=null", "task.holdout=true", "sparsity=99"], ["a", "grid/1-c"]),
        (["--state", "collapsed", "--state", "unfinished"], ["grid/1-c", "d"]),
        (["--state", "finished", "sparsity=99.9"], ["grid/0-b"]),
    ],
)
def test_runs_are_found_by_settings_as_they_are_typed(shared, said, conditions, found):
    text = said(shared, *conditions)
    assert re.findall(r"^(a|grid/\S+|d) ", text, re.MULTILINE) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sparsty=99"], "sparsty: there is no such key; did you mean sparsity?"),
        (["mask=upper"], "mask=upper is unknown; choose one of first_layer,"),
        (["experiment=demo"], "experiment= is no setting of a run"),
        (["lr=table2"], "lr=table2 does not name a value; give lr=NUMBER"),
        (["task="], "task=: give KEY=VALUE"),
        (["task=gsm8k"], "none of the 4 runs below"),
        (["other"], "give one folder"),
        (["--yes"], "--yes goes with --clean"),
        (["--clean", "--csv"], "--clean goes with neither --diff nor --csv"),
        (["--diff", "a", "d", "lr=1"], "--diff takes two runs and no settings"),
        (["--diff", "a", "e"], "e is no run folder; python -m mth.runs"),
    ],
)
def test_what_is_wrong_is_one_line(shared, said, arguments, message):
    assert message in said(shared, *arguments, status=2)


def test_a_folder_without_runs_is_one_line(tmp_path, said, monkeypatch):
    assert "has no runs of mth" in said(tmp_path, status=2)
    monkeypatch.chdir(tmp_path)
    assert "multirun does not exist" in said(status=2)


def test_csv_has_every_setting_and_all_digits(shared, said):
    rows = list(csv.DictReader(io.StringIO(said(shared, "--csv"))))
    assert [row["run"] for row in rows] == ["a", "grid/0-b", "grid/1-c", "d"]
    assert (rows[3]["seed.train"], rows[2]["mask.budget"], rows[0]["sparsity.percent"]) == ("1", "whole_layer", "99")
    assert float(rows[0]["arithmetic pass@1 change"]) == 0.6 and float(rows[0]["arithmetic pass@1 last error"]) == 0.061
    # (0 + 1 + 0 + 1) / 4 better on four prompts: standard deviation sqrt(1 / 3), over the root of 4
    assert float(rows[0]["arithmetic pass@1 change error"]) == pytest.approx((1 / 3) ** 0.5 / 2)


def test_a_damaged_run_is_listed_and_named(tmp_path, said):
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    RunFolder(bad).journal_file.write_text("{}\n" + RunFolder(bad).journal_file.read_text())
    worse = make_run(tmp_path / "worse")
    RunFolder(worse).config_file.write_text("a: [")
    text = said(tmp_path, notes=r"(note: .*(journal.jsonl: line 1 is damaged|config.yaml is damaged)[^\n]*\n){2}")
    assert sorted(re.findall("^(good|bad|worse) ", text, re.MULTILINE)) == ["bad", "good", "worse"]


def test_two_runs_side_by_side(shared, said):
    text = said(shared, "--diff", "a", "grid/0-b")
    assert re.search(r"^sparsity.percent +99 +99.9\n", text, re.MULTILINE) and "mask_seed" not in text
    assert re.search(r"^pass@1 arithmetic, step 4 +0.400 ± 0.061 +0.400 ± 0.061 +\+0.000 ± 0.000\n", text, re.MULTILINE)  # paired
    assert re.search(r"^1 +0.05 +0.05 +0.5 +0.5\n", text, re.MULTILINE)
    assert "3/6" in said(shared, "--diff", shared / "a", shared / "d")
    rows = list(csv.DictReader(io.StringIO(said(shared, "--diff", "a", "d", "--csv"))))
    assert [(row["A"], row["B"]) for row in rows if row["metric"] == "reward/mean" and row["step"] in ("3", "4")] == [
        ("0.15", "0.15"),
        ("0.2", ""),
    ]


def test_errors_are_paired_only_over_the_same_prompts(tmp_path, said):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed={"eval": 5})
    assert re.search(r"step 6 .*\+0.000 ± 0.086\n", said(tmp_path, "--diff", "a", "b"))


def test_a_long_comparison_is_averaged_over_few_windows(tmp_path, said):
    for name in ("a", "b"):
        write_journal_of(make_run(tmp_path / name, train={"steps": 45, "batch_size": 16}), 45)
    text = said(tmp_path, "--diff", "a", "b")
    assert "the settings are the same" in text
    assert re.search(r"^1 to 5 +0.15 +0.15 ", text, re.MULTILINE) and re.search(r"^41 to 45 ", text, re.MULTILINE)


@pytest.fixture
def mess(tmp_path):
    """Runs of which `failed`, `killed` and `twin` are superseded, and no other."""
    root = tmp_path / "runs"
    make_run(root / "done", mask_seed=1)
    make_run(root / "twin", steps=4, status="interrupted", mask_seed=1)
    make_run(root / "failed", steps=-1, status="failed", mask_seed=2)
    make_run(root / "killed", steps=0, status=None, mask_seed=3)
    make_run(root / "alone", steps=4, status="interrupted", mask_seed=4)
    make_run(root / "repeat", mask_seed=1)
    make_run(root / "bad", steps=0, status=None, mask_seed=6)
    RunFolder(root / "bad").journal_file.write_text("damaged\n")
    make_run(root / "saved", steps=0, status=None, mask_seed=7)
    RunFolder(root / "saved").checkpoints.mkdir()
    (RunFolder(root / "saved").checkpoints / "step_000001.safetensors").write_bytes(b"")
    make_run(root / "read_other", steps=4, status=None, mask_seed=1)
    record = RunFolder(root / "read_other").record_file
    write_json(record, read_json(record) | {"contents": {"model.name": {"model.safetensors": "other"}}})
    make_run(root / "outer", steps=0, status=None, mask_seed=8)
    make_run(root / "outer" / "inner", steps=6, mask_seed=9)
    make_run(root / "old" / "0-queued", steps=0, status=None, mask_seed=10)
    for name, dead in (("old", "1-dead"), ("new", "0-queued")):  # the new grid goes on with a run in the old one's folder
        cell = GridCell(dead, root / "old" / dead, [], "x", {}, "unfinished", 6, ["arithmetic"])
        (root / name).mkdir(exist_ok=True)
        Grid(root / name, root, root / name / "code", {}, "command", [cell]).write()
        log_event(root / name, "submitted", cells=[dead], jobs={})
    make_run(root / "at_work", steps=0, status=None, mask_seed=11)
    with lock_folder(root / "at_work"), hold_launcher(root / "new"):
        yield root


NOTES = r"(note: .*\n)*"
SUPERSEDED = {"failed", "killed", "twin"}


def runs_of(root):
    return {str(path.parent.relative_to(root)) for path in root.rglob("config.yaml")}


def test_clean_shows_first_and_deletes_only_what_is_superseded(mess, said):
    before = runs_of(mess)
    text = said(mess, "--clean")
    assert set(names(text)) == SUPERSEDED and re.search(r"interrupted +4/6 ", text)
    assert re.search(r"^twin +finished in \S+/(done|repeat) ", text, re.MULTILINE) and re.search(
        r"^killed +took no step ", text, re.MULTILINE
    )
    assert text.endswith(f"3 superseded of {len(before)} runs. Nothing is deleted; --yes deletes them.\n")
    assert runs_of(mess) == before
    assert set(names(said(mess, "--clean", "mask_seed=1"))) == {"twin"}
    assert "none of the 1 runs" in said(mess / "old", "--clean")  # the queue of a grid beside it counts too
    text = said(mess, "--clean", "--yes")
    assert f"deleted 3 of {len(before)} runs" in text
    assert runs_of(mess) == before - SUPERSEDED and not any((mess / name).exists() for name in SUPERSEDED)
    assert "is superseded" in said(mess, "--clean", "--yes") and runs_of(mess) == before - SUPERSEDED


def test_what_goes_on_meanwhile_is_left_alone(tmp_path):
    for name in ("starts", "ends", "goes_on"):
        make_run(tmp_path / name, steps=0, status=None)
    found = {each.run.path.name: each for each in superseded([glance(path) for path in sorted(tmp_path.iterdir())], set())}
    assert set(found) == {"starts", "ends", "goes_on"}
    with lock_folder(tmp_path / "starts"):
        assert remove(found["starts"]) == "a process is at work in it now"
    write_json(RunFolder(tmp_path / "ends").summary_file, {"status": "finished", "reason": None})
    write_journal_of(tmp_path / "goes_on", 2)
    assert remove(found["ends"]) == remove(found["goes_on"]) == "it has gone on meanwhile"
    assert len(list(tmp_path.iterdir())) == 3
    assert remove(found["starts"]) == "" and not (tmp_path / "starts").exists()


def test_a_run_that_cannot_be_deleted_is_named(tmp_path, said, monkeypatch):
    make_run(tmp_path / "failed", steps=-1, status="failed")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    text = said(tmp_path, "--clean", "--yes", notes="left alone: failed: .*Permission denied.*\n")
    assert "deleted 0 of 1 runs, 0.0 MiB" in text and json.loads(RunFolder(tmp_path / "failed").summary_file.read_text())
