"""Signals become requests."""

import os
import signal

import pytest

from mth.foundations.signals import listen


@pytest.fixture(autouse=True)
def handlers():
    """Restores the handlers of this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_interrupt_ends_the_process_at_once(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requests = listen()
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.stop and not requests.save and not requests.requeue
    assert "SIGINT: saving after this step; send it again to end at once" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_in_a_slurm_job_sigterm_saves_and_sigusr2_stops_for_a_requeue(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    called = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    requests = listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.save and not requests.stop
    os.kill(os.getpid(), signal.SIGUSR2)
    assert requests.stop and requests.requeue and not called
    requests.previous_handler(signal.SIGUSR2, None)
    assert called == [signal.SIGUSR2]
