"""Signals become requests, and interrupt what may be interrupted."""

import os
import signal
import subprocess
import sys

import pytest

from mth.foundations.signals import HANDLED, Interrupted, listen


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """The handlers of a process that was started plainly, not under nohup; those of this process come back."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = {number: signal.getsignal(number) for number in HANDLED}
    for number in HANDLED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HANDLED)
def test_every_signal_that_asks_for_an_end_is_a_request(number, capfd):
    requests = listen()
    send(number)
    assert requests.stop and not requests.save and not requests.requeue and requests.received == number
    assert capfd.readouterr().err == f"{number.name}: saving after this step; send it again to end at once\n"
    assert number == signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL  # a second one ends the process


def test_a_second_interrupt_is_raised_and_a_third_ends_the_process_at_once():
    listen()
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_what_a_process_was_started_to_ignore_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    requests = listen()
    send(signal.SIGHUP)
    assert not requests.stop


def test_in_a_slurm_job_sigterm_saves_and_sigusr2_stops_for_a_requeue(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    called = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    requests = listen()
    send(signal.SIGTERM)
    assert requests.save and not requests.stop
    send(signal.SIGUSR2)
    send(signal.SIGUSR2)  # it may come twice
    assert requests.stop and requests.requeue and not called
    requests.previous_handler(signal.SIGUSR2, None)
    assert called == [signal.SIGUSR2]


def test_a_stop_interrupts_at_once_what_may_be_interrupted_also_if_it_came_before(capfd):
    requests, saved, went_on = listen(), [], []

    def evaluate(signals):
        with requests.interruptible(lambda: saved.append(1)):
            for number in signals:
                send(number)
            went_on.append(1)

    with pytest.raises(Interrupted):
        evaluate([signal.SIGTERM])
    assert "SIGTERM: saving now" in capfd.readouterr().err
    with pytest.raises(Interrupted):
        evaluate([])
    assert not went_on and not saved  # who interrupts it saves


def test_a_request_to_save_is_met_at_once_where_nothing_changes(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    requests, saved = listen(), []
    with requests.interruptible(lambda: saved.append(1)):
        send(signal.SIGTERM)
        assert saved == [1] and not requests.save
    send(signal.SIGTERM)
    assert saved == [1] and requests.save


TALKATIVE = """
import os, sys
from mth.foundations.output import prepare_output
prepare_output()
for number in range(20000):
    print(f"line {number} of many", file=sys.stdout if number % 2 else sys.stderr)
open(sys.argv[1], "w").write("done")
"""


def test_output_that_nobody_reads_ends_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", TALKATIVE, tmp_path / "end"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        assert process.stdout.readline() == "line 0 of many\n"
        process.stdout.close()  # as `head -1` does
        assert process.wait(60) == 0
    assert (tmp_path / "end").read_text() == "done"


def test_a_full_disk_below_a_log_ends_nothing(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", TALKATIVE, tmp_path / "end"], stdout=full, stderr=full)
    assert done.returncode == 0 and (tmp_path / "end").read_text() == "done"
