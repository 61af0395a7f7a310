"""Journal and MLflow: nothing lost to kills, dead servers or twenty processes at once."""

import json
import multiprocessing
import os
import socket
import time

import pytest

from mth.config.stored import flat
from mth.foundations.errors import UserError
from mth.runs import mlflow as tracking
from mth.runs.journal import Journal, read_journal
from mth.runs.mlflow import Tracker, default_uri, mlflow_client, prepare_store, ui_command
from tests.conftest import make_config


def test_journal_appends_and_survives_a_cut_line(tmp_path):
    journal = Journal(tmp_path, -1)
    for step in range(3):
        journal.append(step, {"loss": step / 2})
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"step": 3, "ti')
    assert [e.step for e in read_journal(tmp_path)] == [0, 1, 2]
    resumed = Journal(tmp_path, 1)
    assert [e.step for e in read_journal(tmp_path)] == [0, 1]
    again = resumed.append(2, {"loss": 1.0})
    assert again == journal.entries[2]  # the same point for MLflow: its first time is kept
    assert resumed.series("loss") == [0.0, 0.5, 1.0]


def test_a_full_disk_is_one_clear_line(tmp_path):
    journal = Journal(tmp_path, -1)
    journal.path.unlink()
    journal.path.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        journal.append(0, {"loss": 1.0})


def tracker_of(folder, root, uri=None):
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(tracker={"name": "mlflow", "uri": uri, "experiment": "test"})
    return Tracker(config, folder, root, len(read_journal(folder)) - 1, {"active_parameters": 5}, {"sweep": "s"})


def history(uri, run_dir, key):
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    return [(m.step, m.value) for m in mlflow_client(uri).get_metric_history(run_id, key)]


def test_metrics_reach_the_embedded_store_and_a_resumed_run_continues_it(tmp_path):
    uri, folder = default_uri(tmp_path), tmp_path / "run"
    tracker = tracker_of(folder, tmp_path)
    tracker.log(0, {"eval/arithmetic/pass_at_1": 0.25})
    tracker.log(1, {"loss": 0.5})
    tracker.close("KILLED", {"mth.status": "interrupted"})
    tracker = tracker_of(folder, tmp_path)
    tracker.log(2, {"loss": 0.25})
    tracker.close("FINISHED", {"mth.status": "finished"})
    assert history(uri, folder, "loss") == [(1, 0.5), (2, 0.25)]
    (run,) = mlflow_client(uri).search_runs([prepare_store(uri, "test")])
    assert run.info.status == "FINISHED"
    assert run.data.params["sparsity"] == "99.0"
    assert run.data.params["mask_seed"] == "0"
    assert run.data.params["train.steps"] == "3"
    assert run.data.tags["sweep"] == "s"
    assert run.data.tags["mth.status"] == "finished"
    assert run.info.run_name == "tiny-arithmetic-s99-m0-lr0.005"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_server_blocks_no_step_and_a_resume_refills_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_TIMEOUT_S", 30.0)
    folder = tmp_path / "run"
    tracker = tracker_of(folder, tmp_path, f"http://127.0.0.1:{closed_port()}")
    start = time.monotonic()
    for step in range(20):
        tracker.log(step, {"loss": float(step)})
    assert time.monotonic() - start < 2  # seconds of waiting would show; the journal takes milliseconds
    tracker.close("FINISHED", {})
    assert "nothing is lost" in capsys.readouterr().err
    assert len(read_journal(folder)) == 20
    revived = tracker_of(folder, tmp_path)
    revived.close("FINISHED", {})
    assert len(history(default_uri(tmp_path), folder, "loss")) == 20


def write_run(root, index):
    tracker = tracker_of(root / str(index), root)
    for step in range(10):
        tracker.log(step, {f"metric/{key}": index * 1000 + step * 10 + key for key in range(8)})
    tracker.close("FINISHED", {})


def test_twenty_processes_on_a_store_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_TIMEOUT_S", 240.0)  # twenty processes share two cores here
    import mlflow  # noqa: F401 - imported once, before the children are forked

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_run, args=(tmp_path, i)) for i in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 20
    uri = default_uri(tmp_path)
    runs = mlflow_client(uri).search_runs([prepare_store(uri, "test")])
    assert len(runs) == 20
    assert {run.info.status for run in runs} == {"FINISHED"}
    for index in range(20):
        for key in range(8):
            assert history(uri, tmp_path / str(index), f"metric/{key}") == [(s, index * 1000 + s * 10 + key) for s in range(10)]


def test_small_things():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    command = ui_command("sqlite:////x/mlflow.db")
    assert command.endswith(" -m mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:////x/mlflow.db")
    assert os.access(command.split()[0], os.X_OK)
    assert ui_command("http://127.0.0.1:5000") == "open http://127.0.0.1:5000"
