"""The summary of a run is what its journal says."""

import time
from types import SimpleNamespace

import pytest

from mth.runs.journal import Entry
from mth.runs.summary import Summary, changes, summarize
from tests.conftest import make_config

TICKET = SimpleNamespace(active_parameters=3, total_parameters=9, mask_sha256="abc")


def evaluation(passed, reward):
    return {"eval/arithmetic/pass_at_1": passed, "eval/arithmetic/reward": reward, "seconds/evaluation": 3.0}


def journal_of(entries):
    def series(metric):
        return [entry.metrics[metric] for entry in entries if metric in entry.metrics]

    return SimpleNamespace(entries=entries, series=series)


def summary_of(entries):
    return summarize(journal_of(entries), make_config(train={"batch_size": 16}), "finished", None, TICKET, {"values": 12}, 5.0)


def step(number, **more):
    return Entry(number, int(time.time()), {"completion/tokens_mean": 4.0, "seconds/rollout": 1.0, "seconds/update": 2.0, **more})


def test_a_summary_by_hand():
    entries = [
        Entry(0, 0, evaluation(0.25, 0.5)),
        step(7, peak_memory_bytes=10.0),
        step(8, peak_memory_bytes=30.0, **evaluation(0.5, 0.625)),
        step(9, peak_memory_bytes=20.0),
    ]
    found = summary_of(entries)
    assert (found.status, found.reason, found.steps) == ("finished", None, 9)
    assert found.base == {"arithmetic": {"pass_at_1": 0.25, "reward": 0.5}}
    assert found.final == {"arithmetic": {"pass_at_1": 0.5, "reward": 0.625}}
    assert found.change == {"arithmetic": {"pass_at_1": 0.25, "reward": 0.125}}
    assert found.seconds == {"rollout": 3.0, "update": 6.0, "sync": 0, "evaluation": 6.0}
    assert found.tokens_per_second == pytest.approx(3 * 4 * 16 / 9)  # what training took, without evaluations
    assert found.peak_memory_bytes == 30.0
    assert found.ticket_bytes == {"values": 12}


def test_a_run_that_ended_before_it_knew_anything():
    found = summary_of([])
    assert (found.steps, found.base, found.final, found.change, found.peak_memory_bytes) == (0, {}, {}, {}, 5.0)
    assert summary_of([Entry(0, 0, evaluation(0.25, 0.5))]).change == {}


def test_what_is_not_known_is_not_written_except_the_reason():
    assert Summary("failed").to_json().keys() >= {"status", "reason", "steps"}
    assert "ticket_bytes" not in Summary("failed").to_json()
    assert Summary.from_json({"status": "failed", "of another version": 1}) == Summary("failed")


def test_changes_are_paired_over_prompts_not_over_replies():
    """Two prompts with two replies each: 0 and 1 of two right before, 1 and 2 after. Each prompt gained 0.5, so nothing varies."""
    metrics = {"eval/arithmetic/pass_at_1": 0.25, "eval/arithmetic/reward": 0.25, "eval/arithmetic/prompts": 2.0}
    later = metrics | {"eval/arithmetic/pass_at_1": 0.75, "eval/arithmetic/reward": 0.75}
    entries = [Entry(0, 0, metrics, {"arithmetic": [0, 0, 1, 0]}), Entry(1, 0, later, {"arithmetic": [1, 0, 1, 1]})]
    found = changes(entries, ["arithmetic"])["arithmetic"]
    assert (found["pass_at_1"], found["pass_at_1_error"], found["reward_error"]) == (0.5, 0.0, 0.0)
    entries[1] = Entry(1, 0, later, {"arithmetic": [1, 1, 1, 0]})
    assert changes(entries, ["arithmetic"])["arithmetic"]["pass_at_1_error"] == 0.5
