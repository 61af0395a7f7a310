"""Journal and trackers: nothing lost to kills, dead servers or twenty processes at once."""

import json
import multiprocessing
import os
import socket
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from mth.config.stored import flat
from mth.foundations.errors import UserError
from mth.foundations.files import read_json
from mth.grid.sync import send, sync
from mth.runs.folder import RunFolder
from mth.runs.journal import Journal, read_journal
from mth.runs.summary import Summary
from mth.runs.trackers import writer
from mth.runs.trackers.mlflow import MlflowBackend
from mth.runs.trackers.mlflow_store import (
    absolute,
    default_uri,
    mlflow_client,
    sqlite_file,
    turn,
    ui_command,
    ui_link,
    without_password,
)
from mth.runs.trackers.tracker import Tracker, missing
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


def tracker_of(folder, root, uri=None, **sections):
    """A tracker of a run that is at its journal's end; its folder gets what a run leaves at its start."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(tracker={"name": "mlflow", "uri": uri, "experiment": "test"}, **sections)
    RunFolder(folder).write_config(config)
    return Tracker(config, folder, root, len(read_journal(folder)) - 1, {"active_parameters": 5, "total_parameters": 500})


def end(tracker, folder, status="finished"):
    RunFolder(folder).write_summary(Summary(status=status, steps=len(read_journal(folder)) - 1))
    tracker.close(status)


def write(folder, root, steps, uri=None, **sections):
    """Steps of a run from its journal's end on, up to `steps` in all."""
    tracker = tracker_of(folder, root, uri, **sections)
    for step in range(len(read_journal(folder)), steps):
        tracker.log(step, {"loss": float(step)})
    end(tracker, folder)


def history(uri, run_dir, key):
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    return [(m.step, m.value) for m in mlflow_client(uri).get_metric_history(run_id, f"train/arithmetic/{key}")]


def runs_of(uri, experiment="test"):
    client = mlflow_client(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_metrics_reach_the_embedded_store_and_a_resumed_run_continues_it(tmp_path, store):
    folder = tmp_path / "run"
    tracker = tracker_of(folder, tmp_path)
    tracker.log(0, {"eval/arithmetic/pass_at_1": 0.25})
    tracker.log(1, {"loss": 0.5})
    end(tracker, folder, "interrupted")
    assert [run.info.status for run in runs_of(store)] == ["KILLED"]
    tracker = tracker_of(folder, tmp_path)
    tracker.log(2, {"loss": 0.25})
    end(tracker, folder)
    assert history(store, folder, "loss") == [(1, 0.5), (2, 0.25)]
    (run,) = runs_of(store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/arithmetic/pass_at_1"] == 0.25
    assert run.data.tags["mth.status"] == "finished"
    assert run.info.run_name == "s99-m0-lr5e-3-tiny-arithmetic"


def test_start_and_end_are_those_of_the_run(tmp_path, store):
    """Also where everything is sent long after, from the journal."""
    folder = tmp_path / "run"
    write(folder, tmp_path, 3, f"http://127.0.0.1:{closed_port()}")
    first = 1_700_000_000_000
    seconds = ({"seconds/evaluation": 4.0}, {}, {})
    lines = [{"step": step, "time": first + 30_000 * step, "metrics": {"loss": 1.0} | seconds[step]} for step in range(3)]
    RunFolder(folder).journal_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sync(folder, store)
    (run,) = runs_of(store)
    assert (run.info.start_time, run.info.end_time) == (first - 4_000, first + 60_000)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_server_blocks_no_step_is_told_at_once_and_a_resume_refills_it(tmp_path, capsys, store):
    folder = tmp_path / "run"
    tracker = tracker_of(folder, tmp_path, f"http://127.0.0.1:{closed_port()}")
    start = time.monotonic()
    for step in range(20):
        tracker.log(step, {"loss": float(step)})
    assert time.monotonic() - start < 2  # seconds of waiting would show; the journal takes milliseconds
    until(lambda: tracker.writers[0].problem)
    assert capsys.readouterr().err.count("does not take the metrics") == 1
    end(tracker, folder)
    assert "nothing is lost: python -m mth.grid sync" in capsys.readouterr().err
    assert len(read_journal(folder)) == 20
    write(folder, tmp_path, 20)
    assert len(history(store, folder, "loss")) == 20


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stopped_server_blocks_no_step_and_not_the_end(tmp_path, capsys, monkeypatch):
    """A server that takes connections and never answers, as one under SIGSTOP."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        folder = tmp_path / "run"
        tracker = tracker_of(folder, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker.writers[0].backend.patience_s = 1.0
        start = time.monotonic()
        for step in range(20):
            tracker.log(step, {"loss": float(step)})
        assert time.monotonic() - start < 2
        end(tracker, folder)
        assert time.monotonic() - start < 30
    assert "nothing is lost" in capsys.readouterr().err
    assert len(read_journal(folder)) == 20


def write_many(root, index):
    tracker = tracker_of(root / str(index), root, mask_seed=index)
    for step in range(10):
        tracker.log(step, {f"metric/{key}": index * 1000 + step * 10 + key for key in range(8)})
    end(tracker, root / str(index))


def test_twenty_processes_on_a_store_that_does_not_exist(tmp_path):
    import mlflow  # noqa: F401 - imported once, before the children are forked

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path, i)) for i in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 20
    uri = default_uri(tmp_path)
    runs = runs_of(uri)
    assert len(runs) == 20
    assert {run.info.status for run in runs} == {"FINISHED"}
    for index in range(20):
        for key in range(8):
            assert history(uri, tmp_path / str(index), f"metric/{key}") == [(s, index * 1000 + s * 10 + key) for s in range(10)]


@pytest.mark.parametrize(("what", "when"), [("deleted", "while it runs"), ("emptied", "while it runs"), ("emptied", "between two starts")])
def test_a_store_that_is_gone_is_made_again_and_gets_everything(tmp_path, store, empty_store, what, when, monkeypatch, capsys):
    monkeypatch.setattr(writer, "RETRY_S", 0.0)
    folder, path = tmp_path / "run", tmp_path / "mlflow.db"
    tracker = tracker_of(folder, tmp_path)
    for step in range(2):
        tracker.log(step, {"loss": float(step)})
    until(lambda: tracker.writers[0].feed.taken == 2)
    if when == "between two starts":
        end(tracker, folder, "interrupted")
    path.unlink() if what == "deleted" else path.write_bytes(empty_store)
    if when == "between two starts":
        tracker = tracker_of(folder, tmp_path)
    tracker.log(2, {"loss": 2.0})
    end(tracker, folder)
    assert history(store, folder, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [run.info.status for run in runs_of(store)] == ["FINISHED"]
    assert "did not take everything" not in capsys.readouterr().err


def test_a_deleted_run_or_experiment_is_made_again_by_a_resume_and_by_sync(tmp_path, store):
    folder = tmp_path / "run"
    write(folder, tmp_path, 2)
    client = mlflow_client(store)
    (first,) = runs_of(store)
    client.delete_run(first.info.run_id)
    write(folder, tmp_path, 3)
    (second,) = runs_of(store)
    assert second.info.run_id != first.info.run_id
    assert len(history(store, folder, "loss")) == 3
    client.delete_experiment(second.info.experiment_id)
    sync(folder, None)
    (third,) = runs_of(store, "test-2")  # MLflow keeps the name of a deleted experiment
    assert len(history(store, folder, "loss")) == 3
    sync(folder, None)
    assert [run.info.run_id for run in runs_of(store, "test-2")] == [third.info.run_id]


def die_before_the_id_is_stored(folder, root):
    MlflowBackend._remember = lambda *_: os._exit(9)
    tracker = tracker_of(folder, root)
    tracker.log(0, {"loss": 0.0})
    tracker.writers[0].thread.join(60)


def test_a_kill_leaves_no_second_run_and_none_that_is_open_for_ever(tmp_path, store):
    """A kill between making the run and storing its id; one whose ids were lost; one that nobody continues."""
    folder = tmp_path / "run"
    import mlflow  # noqa: F401 - imported once, before the child is forked

    child = multiprocessing.get_context("fork").Process(target=die_before_the_id_is_stored, args=(folder, tmp_path))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    (orphan,) = runs_of(store)
    assert orphan.info.status == "RUNNING"
    sync(folder, None)
    (run,) = runs_of(store)
    assert (run.info.run_id, run.info.status) == (orphan.info.run_id, "KILLED")
    write(folder, tmp_path, 2)
    assert [run.info.run_id for run in runs_of(store)] == [orphan.info.run_id]
    mlflow_client(store).update_run(orphan.info.run_id, status="RUNNING")
    RunFolder(folder).mlflow_file.unlink()
    write(folder, tmp_path, 3)
    assert Counter(run.info.status for run in runs_of(store)) == {"FINISHED": 1, "KILLED": 1}


def test_what_arrived_is_known_and_sync_heals_the_rest(tmp_path, store):
    folder = tmp_path / "run"
    tracker = tracker_of(folder, tmp_path)
    tracker.log(0, {"loss": 0.0})
    end(tracker, folder)
    run = tracker.run
    assert missing(run) == []
    assert read_json(folder / "trackers.json") == {f"MLflow at {store}": {"step": 0, "status": "finished"}}
    Journal(folder, 0).append(1, {"loss": 1.0})
    assert missing(run) == [f"MLflow at {store}"]
    assert send(folder, None, None) == []
    assert missing(run) == []
    assert history(store, folder, "loss") == [(0, 0.0), (1, 1.0)]


def test_a_locked_store_is_tried_again_until_it_takes_the_end(tmp_path, store, monkeypatch, capsys):
    monkeypatch.setattr(writer, "LAST_TRIES_S", 0.1)
    monkeypatch.setattr(MlflowBackend, "send", fails_twice(MlflowBackend.send))
    write(tmp_path / "run", tmp_path, 3)
    assert len(history(store, tmp_path / "run", "loss")) == 3
    assert "did not take everything" not in capsys.readouterr().err


def fails_twice(send):
    failures = [sqlite3.OperationalError("(autoflush)\ndatabase is locked") for _ in range(2)]

    def sending(self, entries):
        if failures:
            raise failures.pop()
        send(self, entries)

    return sending


def test_addresses_are_read_as_sqlalchemy_reads_them(tmp_path, monkeypatch, empty_store):
    monkeypatch.chdir(tmp_path)
    assert sqlite_file("sqlite:///relative.db") == tmp_path / "relative.db"
    assert sqlite_file("sqlite:////x/y.db?timeout=60") == Path("/x/y.db")
    assert sqlite_file("sqlite+pysqlite:////x/y.db") == Path("/x/y.db")
    for other in ("http://x", "postgresql://u:p@h/db", "sqlite://", "sqlite:///:memory:", "./mlruns"):
        assert sqlite_file(other) is None
        assert absolute(other) == other
    assert absolute("sqlite:///a/b.db?timeout=60") == f"sqlite:///{tmp_path}/a/b.db?timeout=60"
    assert without_password("postgresql://u:p@h/db") == "postgresql://u:***@h/db"
    assert without_password("http://127.0.0.1:5000/a") == "http://127.0.0.1:5000/a"
    Path("relative.db").write_bytes(empty_store)
    write(tmp_path / "run", tmp_path, 2, "sqlite:///relative.db?timeout=60")
    assert len(runs_of(f"sqlite:///{tmp_path}/relative.db")) == 1


def test_small_things():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    command = ui_command("sqlite:////x/mlflow.db")
    assert command.endswith(" -m mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:////x/mlflow.db")
    assert os.access(command.split()[0], os.X_OK)
    assert ui_command("http://127.0.0.1:5000") is None
    assert ui_link("http://h:1/", "3") == "http://h:1/#/experiments/3/runs?workflowType=machine_learning"


def test_a_link_in_the_place_of_a_stores_lock_leads_nowhere(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    (tmp_path / ".runs.db.lock").symlink_to(tmp_path / "precious.txt")
    with turn(f"sqlite:///{tmp_path / 'runs.db'}"):
        assert (tmp_path / "precious.txt").read_text() == "keep"
