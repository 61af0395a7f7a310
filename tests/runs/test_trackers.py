"""What trackers are told of a run, TensorBoard's and W&B's files read back, and several trackers at once."""

import json
import os
import signal
import struct
import time
from collections import defaultdict
from contextlib import suppress

import pytest

from mth.analysis.sources import run_folders
from mth.config.cells import cells_of
from mth.config.identity import identity
from mth.config.overrides import rewrite_numbers
from mth.config.stored import from_plain, to_plain
from mth.foundations.errors import UserError
from mth.grid.sync import send
from mth.runs.folder import RunFolder
from mth.runs.journal import Entry, read_journal
from mth.runs.samples import EVAL, TRAIN, Sample, SampleStore
from mth.runs.search import find_runs
from mth.runs.summary import Summary
from mth.runs.trackers.look import ways_to_look
from mth.runs.trackers.mlflow_store import default_uri, mlflow_client
from mth.runs.trackers.record import TrackedRun, journal_name, short, shown_samples, stored_config, tracked_name
from mth.runs.trackers.tracker import Tracker, missing, require_installed
from tests.conftest import make_config
from tests.runs.test_tracking import end, until

TASK = "arithmetic"


def run_of(folder, grid=None, **sections):
    folder.mkdir(parents=True, exist_ok=True)
    return TrackedRun(make_config(**sections), RunFolder(folder), folder.parent, grid, {"active_parameters": 5, "total_parameters": 500})


def sample(step, kind=EVAL, index=0):
    turns = [f"<script>reply {index}</script>"]
    return Sample(step, kind, TASK, f"u{index}", 0, "What is 1+1?", turns, "stopped", 3, float(step > 0), {}, None, None, ["2"])


def with_samples(folder):
    samples = SampleStore(folder.samples, make_config().samples, 0)
    for step in (0, 1, 2):
        samples.add(step, EVAL, [sample(step, index=index) for index in range(3)] if step != 1 else [])
        samples.add(step, TRAIN, [sample(step, TRAIN)])


def tracker_of(folder, names, **sections):
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(tracker={"name": names[0], "also": names[1:], "experiment": "test"}, **sections)
    facts = {"active_parameters": 5, "total_parameters": 500}
    RunFolder(folder).write_config(config)
    RunFolder(folder).add_to_record(facts=facts)
    return Tracker(config, folder, folder.parent, len(read_journal(folder)) - 1, facts)


def train_three_steps(folder, names):
    """A run of three steps that was stopped after two and continued."""
    tracker = tracker_of(folder, names)
    tracker.log(0, {"eval/arithmetic/pass_at_1": 0.25})
    tracker.log(1, {"loss": 0.5, "entropy": float("nan")})
    end(tracker, folder, "interrupted")
    with_samples(RunFolder(folder))
    tracker = tracker_of(folder, names)
    tracker.log(2, {"loss": 0.25, "eval/arithmetic/pass_at_1": 0.5})
    end(tracker, folder)
    return tracker


def test_a_name_begins_with_what_differs(tmp_path):
    assert run_of(tmp_path / "a", sparsity={"percent": 99.9}, mask_seed=42, lr={"value": 1e-3}).name == "s99.9-m42-lr1e-3-tiny-arithmetic"
    assert run_of(tmp_path / "b", mask={"family": "magnitude"}).name == "s99-magnitude-largest-m0-lr5e-3-tiny-arithmetic"
    cells = [
        {"overrides": [f"mask_seed={seed}", f"optimizer.weight_decay={decay}", "eval.samples=8"]} for seed in (0, 1) for decay in (0, 0.5)
    ]
    (tmp_path / "grid.json").write_text(json.dumps({"cells": cells}))
    swept = run_of(tmp_path / "c", grid=tmp_path, optimizer={"weight_decay": 0.5})
    assert swept.name == "s99-m0-lr5e-3-weight_decay0.5-tiny-arithmetic"
    assert [short(value) for value in (0.03, 1e-3, 0.005, 1.5e-5, 0.0, 3, "x")] == ["0.03", "1e-3", "5e-3", "1.5e-5", "0", "3", "x"]


def test_parameters_are_few_and_the_whole_configuration_is_in_the_tags(tmp_path):
    run = run_of(tmp_path / "a", train={"steps": 7}, optimizer={"weight_decay": 0.5}, task={"path": "[v1] data"})
    settings = run.settings
    assert settings["sparsity"] == 99.0 and settings["steps"] == 7 and settings["optimizer.weight_decay"] == 0.5
    assert None not in settings.values() and len(settings) < 30
    assert not {"optimizer.beta1", "train.steps", "tracker.name", "checkpoints.every"} & set(settings)
    assert identity(from_plain(stored_config(run.tags))) == identity(run.config)
    long = run_of(tmp_path / "b", task={"path": "[" + "x" * 12_000})
    assert max(map(len, long.tags.values())) <= 5000
    assert identity(from_plain(stored_config(long.tags))) == identity(long.config)


def test_no_key_of_a_tracker_takes_part_in_an_identity():
    plain = to_plain(make_config())
    other = from_plain(plain | {"tracker": {"name": "wandb", "also": ["mlflow", "tensorboard"], "uri": "http://x", "experiment": "y"}})
    assert identity(other) == identity(make_config())
    assert identity(from_plain(plain | {"tracker": {"name": "none", "uri": None, "experiment": "mth"}})) == identity(make_config())


def test_metrics_of_different_tasks_have_different_names():
    """Trackers average one name over the runs of a group."""
    for metric in ("reward/mean", "loss", "seconds/rollout", "eval/gsm8k/pass_at_1"):
        names = [tracked_name(metric, task) for task in ("gsm8k", "arithmetic")]
        assert names[0] != names[1] or "gsm8k" in metric
        assert journal_name(names[0], "gsm8k") == metric == journal_name(metric, "gsm8k")


def test_a_description_is_two_lines(tmp_path):
    run = run_of(tmp_path / "a")
    ends = ({TASK: {"pass_at_1": value, "pass_at_1_error": 0.01}} for value in (0.25, 0.5))
    first, second = run.description(Summary("finished", None, 3, "", base=next(ends), final=next(ends))).split("\n")
    assert first == "Trains 5 of 500 parameters of tiny (mask: random, seed 0) on arithmetic, 3 steps at learning rate 5e-3."
    assert second == "Finished after 3 steps; arithmetic pass@1 0.250 ± 0.010 -> 0.500 ± 0.010."
    assert run.description(Summary()).endswith("\nRunning.")


def test_the_times_are_those_of_the_run(tmp_path):
    run = run_of(tmp_path / "a")
    entries = [Entry(0, 50_000, {"seconds/evaluation": 4.0}), Entry(1, 70_000, {})]
    assert (run.start_ms(entries), run.end_ms(entries)) == (46_000, 70_000)
    run.folder.add_to_record(started="1970-01-01T01:00:40+0100")
    assert (run.start_ms(entries), run.start_ms([])) == (40_000, 40_000)


def test_samples_are_those_of_the_first_and_the_last_evaluation(tmp_path):
    folder = RunFolder(tmp_path)
    with_samples(folder)
    assert [(each.step, each.kind, each.uid) for each in shown_samples(folder)] == [(s, EVAL, f"u{i}") for s in (0, 2) for i in range(3)]
    (folder.samples / "step_000000.parquet").write_bytes(b"damaged")
    assert {each.step for each in shown_samples(folder)} == {2}


def tensorboard_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(RunFolder(folder).tensorboard), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def check_tensorboard(folder):
    events, entries = tensorboard_events(folder), read_journal(folder)
    losses = [(each.step, each.value, int(1000 * each.wall_time + 0.5)) for each in events.Scalars("train/arithmetic/loss")]
    assert losses == [(entry.step, entry.metrics["loss"], entry.time) for entry in entries[1:]]
    assert [(each.step, each.value) for each in events.Scalars("eval/arithmetic/pass_at_1")] == [(0, 0.25), (2, 0.5)]
    text = [each.tensor_proto.string_val[0].decode() for each in events.Tensors("samples/arithmetic/text_summary")]
    assert len(text) == 2 and "    <script>reply 0</script>" in text[0]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert len(list(RunFolder(folder).tensorboard.iterdir())) == 1  # each start writes anew
    assert "Trains 5 of 500" in events.Tensors("description/text_summary")[-1].tensor_proto.string_val[0].decode()


def wandb_records(folder):
    """What the library wrote without a network: blocks of 32 KiB with records of a checksum, a length and a type."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (RunFolder(folder).path / "wandb").glob("offline-run-*/run-*.wandb")
    data, at, part, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind == 0:
            break
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def check_wandb(folder):
    records, found, config = wandb_records(folder), defaultdict(list), {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key in row:
                found[key].append((record.history.step.num, row[key]))
        if record.WhichOneof("record_type") == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            name = record.run.display_name
    assert found["train/arithmetic/loss"] == [(1, 0.5), (2, 0.25)]
    assert found["eval/arithmetic/pass_at_1"] == [(0, 0.25), (2, 0.5)]
    assert [int(1000 * value + 0.5) for _, value in found["_timestamp"]] == [entry.time for entry in read_journal(folder)]
    assert config["sparsity"] == 99.0 and config["active_parameters"] == 5
    assert name == "s99-m0-lr5e-3-tiny-arithmetic"
    assert any(record.WhichOneof("record_type") == "exit" and record.exit.exit_code == 0 for record in records)


def test_three_trackers_at_once_and_each_again_from_the_journal(tmp_path, store, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    tracker = train_three_steps(folder, ["mlflow", "tensorboard", "wandb"])
    assert capsys.readouterr().err == ""
    check_tensorboard(folder)
    check_wandb(folder)
    client = mlflow_client(default_uri(tmp_path))
    run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert {each.path for each in client.list_artifacts(run_id)} == {"config.yaml", "summary.json", "samples.json"}
    assert find_runs([tmp_path], [tracker.run.config])[0] == {identity(tracker.run.config): [folder]}  # and no copy in MLflow's artifacts
    assert list(run_folders(tmp_path)) == [folder]
    table = json.loads((tmp_path / "mlartifacts" / "test" / run_id / "artifacts" / "samples.json").read_text())
    assert table["columns"][:3] == ["step", "reward", "reply"] and len(table["data"]) == 6
    assert missing(tracker.run) == []
    assert [title.strip() for title, _ in ways_to_look(tracker.run.config, tracker.run.folder, tmp_path)] == [
        "MLflow UI:",
        "then open:",
        "TensorBoard:",
        "W&B:",
    ]

    for file in ("trackers.json", *(path.relative_to(folder) for path in (folder / "tensorboard").iterdir())):
        (folder / file).unlink()
    (written,) = (folder / "wandb").glob("offline-run-*")
    written.rename(f"{written}-1")  # what W&B names a second start within one second
    (folder / "page.html").write_text("<p>the page</p>")
    assert len(missing(tracker.run)) == 3
    assert send(folder, None, None) == []
    assert missing(tracker.run) == []
    check_tensorboard(folder)
    check_wandb(folder)
    assert "page.html" in {each.path for each in client.list_artifacts(run_id)}


@pytest.fixture
def ended():
    """Process groups that must not outlive a test, whatever it finds."""
    groups: list[int] = []
    yield groups
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_a_tracker_that_hangs_or_dies_holds_nothing_up(tmp_path, monkeypatch, capsys, ended):
    """The process of W&B is stopped, and then killed. TensorBoard's folder cannot be written."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tensorboard").write_text("in the way")
    tracker = tracker_of(folder, ["wandb", "tensorboard"])
    wandb = tracker.writers[0]
    until(lambda: wandb.feed.ready)
    process = wandb.backend.process
    ended.append(process.pid)
    os.kill(process.pid, signal.SIGSTOP)
    wandb.backend.patience_s = 0.5
    start = time.monotonic()
    for step in range(3):
        tracker.log(step, {"loss": float(step)})
    end(tracker, folder)
    assert time.monotonic() - start < 20
    assert process.poll() is not None  # nothing is left behind
    told = capsys.readouterr().err
    assert "W&B project test did not take everything" in told and "TensorBoard did not take everything" in told
    assert [entry.step for entry in read_journal(folder)] == [0, 1, 2]


def test_several_trackers_are_typed_as_a_list(monkeypatch):
    (cell,) = cells_of(["tracker=[tensorboard, wandb]"])
    assert cell.config.tracker.chosen == ["tensorboard", "wandb"]
    assert rewrite_numbers(["tracker=[mlflow]", "lr=1"]) == ["tracker=mlflow", "tracker.also=[]", "lr.value=1"]
    assert rewrite_numbers(["tracker=[]"])[0] == "tracker=none"
    assert rewrite_numbers(["tracker=wandb,mlflow"]) == ["tracker=wandb,mlflow"]  # two cells
    assert make_config(tracker={"name": "none", "also": ["mlflow", "none", "mlflow"]}).tracker.chosen == ["mlflow"]
    with pytest.raises(UserError, match=r"tracker.also=aim is unknown; choose one of mlflow, none, tensorboard, wandb"):
        make_config(tracker={"also": ["aim"]})
    monkeypatch.setattr("mth.runs.trackers.tracker.find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(UserError, match=r"pip install 'sparse-rlvr\[wandb\]'"):
        require_installed(make_config(tracker={"name": "mlflow", "also": ["wandb"]}))
