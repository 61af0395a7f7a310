"""MLflow as a server over PostgreSQL: many writers at once, and a server that is away for part of a run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from glob import glob
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.runs.test_tracking import closed_port, end, history, tracker_of
from tests.servers import wait_for_health


@pytest.fixture(scope="module")
def postgres():
    """URI of an empty database in a cluster of its own. Installing Debian's package is left to CI and to developers who ask for it."""
    wanted = os.environ.get("CI") or os.environ.get("MTH_POSTGRES")
    if not glob("/usr/lib/postgresql/*/bin/initdb") and wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql"], check=True, env=environment)
    programs = glob("/usr/lib/postgresql/*/bin")
    if not programs:
        pytest.skip("needs PostgreSQL; MTH_POSTGRES=1 installs it on Debian, as root")
    pytest.importorskip("psycopg2", reason="needs psycopg2: make test installs it")
    folder, port = Path(tempfile.mkdtemp(prefix="mth-postgres-")), closed_port()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # PostgreSQL refuses to run as root
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program, *arguments):
        command = [*as_user, f"{programs[-1]}/{program}", "-D", folder / "data", *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    run("initdb", "-A", "trust", "-U", "mlflow")
    run("pg_ctl", "-w", "-l", folder / "log", "-o", f"-k {folder} -p {port} -c listen_addresses=127.0.0.1", "start")
    yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)


class Server:
    """`mlflow server` on one port, started and killed at will."""

    def __init__(self, store, folder):
        self.port = closed_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "2"]
        stores = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
        self.command = [sys.executable, "-m", "mlflow", "server", *where, *stores]

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for_health(self.uri)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = Server(postgres, tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def write_run(root, index, uri):
    tracker = tracker_of(root / str(index), root, uri)
    for step in range(10):
        tracker.log(step, {f"metric/{key}": index * 1000 + step * 10 + key for key in range(4)})
    end(tracker, root / str(index))


def test_many_processes_write_to_one_server(server, tmp_path):
    import mlflow  # noqa: F401 - imported once, before the children are forked

    processes = [get_context("fork").Process(target=write_run, args=(tmp_path, i, server.uri)) for i in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 8
    for index in range(8):
        for key in range(4):
            expected = [(step, index * 1000 + step * 10 + key) for step in range(10)]
            assert history(server.uri, tmp_path / str(index), f"metric/{key}") == expected


def test_a_server_that_is_away_for_a_while_gets_everything_at_the_end(server, tmp_path, capsys):
    folder = tmp_path / "run"
    tracker = tracker_of(folder, tmp_path, server.uri)
    for step in range(3):
        tracker.log(step, {"loss": float(step)})
    writer = tracker.writers[0]
    deadline = time.monotonic() + 60
    while writer.feed.taken < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.kill()
    for step in range(3, 6):
        tracker.log(step, {"loss": float(step)})
    while writer.problem is None:  # it has noticed
        time.sleep(0.1)
    server.start()
    tracker.log(6, {"loss": 6.0})
    end(tracker, folder)
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "training goes on" in told
    assert history(server.uri, folder, "loss") == [(step, float(step)) for step in range(7)]
