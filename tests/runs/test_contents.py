"""What a run reads is known by its contents: a change is named before a run is skipped, continued or extended, and in the shared evaluation."""

import json
import os
import shutil

import pytest

from mth.config.cells import Cell
from mth.foundations.errors import UserError
from mth.foundations.files import read_json, write_json
from mth.foundations.paths import TINY_MODEL
from mth.grid.placement import place_cells, place_run
from mth.runs.checkpoint import Checkpoint, checkpoint_path
from mth.runs.contents import contents, keep_contents
from mth.runs.folder import RunFolder
from mth.runs.lock import lock_run
from mth.runs.search import copy_beginning
from mth.runs.summary import Summary
from mth.training.evaluation import base_key
from mth.training.setup import assemble_ticket
from tests.conftest import claim, make_config


def rows(path, *answers):
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in answers))
    return str(path)


@pytest.fixture
def inputs(tmp_path):
    """Sections of a configuration that reads its model, its tokenizer, and its data of training and of evaluation from files, and these files."""
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    shutil.copytree(TINY_MODEL, model)
    shutil.copytree(TINY_MODEL, tokenizer)
    files = {
        "task.path: train.jsonl": tmp_path / "train.jsonl",
        "eval.paths.arithmetic: test.jsonl": tmp_path / "test.jsonl",
        "model.path: model.safetensors": model / "model.safetensors",
        "model.path: config.json": model / "config.json",
        "model.tokenizer: tokenizer.json": tokenizer / "tokenizer.json",
    }
    sections = {
        "task": {"name": "gsm8k", "path": rows(files["task.path: train.jsonl"], *range(8))},
        "eval": {"tasks": ["gsm8k", "arithmetic"], "paths": {"arithmetic": rows(files["eval.paths.arithmetic: test.jsonl"], 1, 2)}},
        "model": {"path": str(model), "tokenizer": str(tokenizer)},
    }
    return sections, files


def touch_up(path):
    """Change a file and leave its size and the names as they are."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(1, 1))


def run_of(path, config, status="finished"):
    claim(path, config)
    RunFolder(path).write_summary(Summary(status=status, steps=config.train.steps))
    last = checkpoint_path(path, config.train.steps)
    last.parent.mkdir()
    last.write_bytes(b"")
    RunFolder(path).journal_file.write_text("")
    return path


CHANGED = [
    "task.path: train.jsonl",
    "eval.paths.arithmetic: test.jsonl",
    "model.path: model.safetensors",
    "model.path: config.json",
    "model.tokenizer: tokenizer.json",
]


@pytest.mark.parametrize("what", CHANGED)
def test_a_run_that_read_another_file_is_refused_by_name(inputs, tmp_path, what):
    sections, files = inputs
    runs, config, longer = tmp_path / "runs", make_config(**sections), make_config(**sections, train={"steps": 9})
    old = run_of(runs / "old", config)
    assert place_run(config, runs / "new", runs).found == "finished"
    assert place_run(longer, runs / "new", runs).found == "extended"
    key = base_key(config)
    touch_up(files[what])
    remedy = rf"{what} has changed since the run in .*; put it back, or give force=true"
    for wanted in (config, longer):  # not skipped, not extended; in a grid neither
        with pytest.raises(UserError, match=remedy):
            place_run(wanted, runs / "new", runs)
        with pytest.raises(UserError, match=remedy):
            place_cells([Cell((), "0", wanted, {"kind": "local"})], runs / "grid", runs)
    RunFolder(old).write_summary(Summary(status="interrupted", steps=1))
    for folder in (runs / "new", old):  # not continued, wherever it is found
        with pytest.raises(UserError, match=remedy):
            place_run(config, folder, runs)
    assert base_key(config) != key


def test_a_forced_run_is_found_again_beside_the_old_one(inputs, tmp_path):
    sections, files = inputs
    runs, config = tmp_path / "runs", make_config(**sections)
    run_of(runs / "old", config)
    touch_up(files["task.path: train.jsonl"])
    forced = place_run(make_config(**sections, force=True), runs / "new", runs)
    assert (forced.found, forced.dir) == ("new", runs / "new")
    run_of(runs / "new", config)
    again = place_run(config, runs / "third", runs)
    assert (again.found, again.dir) == ("finished", runs / "new")
    longer = place_run(make_config(**sections, train={"steps": 9}), runs / "third", runs)
    assert (longer.found, longer.beginning) == ("extended", runs / "new")


def test_a_process_that_starts_late_looks_again(inputs, tmp_path):
    """A cell waits in a queue while its data change: it neither goes on nor starts from a beginning."""
    sections, files = inputs
    config, longer = make_config(**sections), make_config(**sections, train={"steps": 9})
    half = run_of(tmp_path / "half", config, "interrupted")
    short, extended = run_of(tmp_path / "short", config), tmp_path / "extended"
    copy_beginning(short, extended, longer)
    RunFolder(extended).write_config(longer)
    touch_up(files["task.path: train.jsonl"])
    for folder, wanted in ((half, config), (extended, longer)):
        with pytest.raises(UserError, match=r"task\.path: train\.jsonl has changed"), lock_run(folder, wanted):
            pass


def test_only_what_is_read_counts(inputs, tmp_path):
    sections, _ = inputs
    config = make_config(**sections)
    before = contents(config)
    assert sorted(before) == ["eval.paths.arithmetic", "model.path", "model.tokenizer", "task.path"]
    (tmp_path / "model" / "notes.txt").write_text("x")
    (tmp_path / "model" / "tokenizer.json").unlink()  # another tokenizer is given
    assert contents(config) == before
    assert sorted(contents(make_config())) == ["model.name"]
    unread = make_config(**sections | {"eval": {"tasks": ["gsm8k"], "paths": {"arithmetic": sections["eval"]["paths"]["arithmetic"]}}})
    assert "eval.paths.arithmetic" not in contents(unread)
    assert "model.safetensors" not in contents(make_config(**sections | {"model": sections["model"] | {"init": "random"}}))["model.path"]


def test_the_files_of_a_folder_and_the_shards_of_weights(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    rows(data / "train.jsonl", *range(8))
    rows(data / "test.jsonl", 1)
    shutil.copytree(TINY_MODEL, model)
    (model / "model.safetensors").rename(model / "a-00001.safetensors")
    write_json(model / "model.safetensors.index.json", {"weight_map": {"x": "a-00001.safetensors"}})
    config = make_config(task={"name": "gsm8k", "path": str(data)}, model={"path": str(model)})
    run = run_of(tmp_path / "run", config)
    assert {"a-00001.safetensors", "model.safetensors.index.json"} <= contents(config)["model.path"].keys()
    rows(data / "test.jsonl", 2)
    with pytest.raises(UserError, match=r"task\.path: test\.jsonl has changed"):
        place_run(config, run, tmp_path)


def test_a_hub_id_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    config = make_config(model={"path": "some/model", "name": "m"}, task={"name": "gsm8k"})
    assert contents(config) == {}  # nothing was fetched yet
    run = run_of(tmp_path / "run", config)
    assert place_run(config, run, tmp_path).found == "finished"

    head, prepared = tmp_path / "hub/models--some--model/refs/main", tmp_path / "datasets/openai___gsm8k/main/0.0.0"
    head.parent.mkdir(parents=True)
    head.write_text("a" * 40)
    (prepared / ("1" * 40)).mkdir(parents=True)
    assert contents(config) == {"model.path": {"some/model": "a" * 40}, "task.path": {"openai/gsm8k": "1" * 40}}
    keep_contents(run, config)  # as after loading
    assert RunFolder(run).record()["contents"] == contents(config)
    head.write_text("b" * 40)
    with pytest.raises(UserError, match=r"model\.path: some/model has changed"):
        place_run(config, run, tmp_path)
    head.unlink()  # a cache that was cleared says nothing
    assert place_run(config, run, tmp_path).found == "finished"
    keep_contents(run, config)
    assert RunFolder(run).record()["contents"]["model.path"] == {"some/model": "a" * 40}
    os.utime(prepared / ("1" * 40), (0, 0))
    (prepared / ("2" * 40)).mkdir()
    with pytest.raises(UserError, match=r"task\.path: openai/gsm8k has changed"):
        keep_contents(run, config)


def test_runs_of_older_versions_have_no_digests_and_are_accepted(inputs, tmp_path):
    sections, files = inputs
    config = make_config(**sections)
    old = run_of(tmp_path / "old", config)
    record = read_json(RunFolder(old).record_file)
    write_json(RunFolder(old).record_file, {key: value for key, value in record.items() if key != "contents"})
    touch_up(files["task.path: train.jsonl"])
    assert place_run(config, tmp_path / "new", tmp_path).found == "finished"


def test_a_checkpoint_is_evaluated_with_the_model_and_tokenizer_of_its_run_only(inputs, tmp_path, monkeypatch):
    sections, files = inputs
    config = make_config(**sections)
    checkpoint = Checkpoint(checkpoint_path(run_of(tmp_path / "run", config), 3), {}, {})
    monkeypatch.setattr("mth.training.setup.restore_ticket", lambda *_: None)
    touch_up(files["task.path: train.jsonl"])  # other data are welcome
    assemble_ticket(config, checkpoint)
    files["model.tokenizer: tokenizer.json"].write_text(files["model.tokenizer: tokenizer.json"].read_text() + "\n")
    with pytest.raises(UserError, match=r"model\.tokenizer: tokenizer\.json has changed since the run in .*; put it back"):
        assemble_ticket(config, checkpoint)
