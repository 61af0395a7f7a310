"""A run folder for tests of pages and lists: its journal and samples are made up, its files are real."""

import json
import sys
from dataclasses import replace

import pytest

from mth.runs.folder import RunFolder
from mth.runs.samples import Sample, pack, sample_file
from mth.runs.summary import Summary, changes, results
from tests.conftest import claim, make_config

SAMPLE = Sample(
    0, "eval", "arithmetic", "p1", 0, "question 1", ["answer"], "stopped", 7, 1.0, {"reward": 1.0, "strict": 1.0}, None, -0.25, ["truth 1"]
)


def write_journal_of(path, steps, every=2, passes=lambda step: step / 10):
    """A journal of `steps` steps, evaluated at every second one on four prompts."""
    lines = []
    for step in range(steps + 1):
        metrics = {"reward/mean": step / 20, "entropy": 1 / (1 + step), "seconds/rollout": 0.5, "seconds/update": 1.0} if step else {}
        rewards = {}
        if step % every == 0:
            task = "eval/arithmetic/"
            metrics |= {f"{task}pass_at_1": passes(step), f"{task}reward": passes(step), f"{task}pass_at_1_error": 0.061}
            metrics |= {f"{task}prompts": 4.0, f"{task}reward_error": 0.061, "seconds/evaluation": 2.0}
            rewards = {"arithmetic": [0.0, float(step > 2), 1.0, float(step > 4)]}
        line = {"step": step, "time": 1_700_000_000_000 + step, "metrics": metrics} | ({"rewards": rewards} if rewards else {})
        lines.append(json.dumps(line))
    RunFolder(path).journal_file.write_text("".join(f"{line}\n" for line in lines))


def make_run(path, steps=6, status="finished", **sections):
    """A run folder with a journal of `steps` steps. status: None for a run that was killed."""
    config = make_config(**({"train": {"steps": 6, "batch_size": 16}} | sections))
    claim(path, config)
    write_journal_of(path, steps)
    if status:
        from mth.runs.journal import read_journal

        entries, tasks = read_journal(path), ["arithmetic"]
        known = {"base": results(entries, 0, tasks), "final": results(entries, -1, tasks), "change": changes(entries, tasks)}
        reason = None if status == "finished" else "it went wrong"
        RunFolder(path).write_summary(Summary(status, reason, steps, config.label, 17_881, 1_791_104, **known))
    return path


def add_samples(path, samples):
    """Write samples into a run folder, by their steps."""
    for step in {sample.step for sample in samples}:
        file = sample_file(RunFolder(path).samples, step)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pack([sample for sample in samples if sample.step == step]))


def eval_samples(step, *rewards):
    """One reply to each of the prompts p1, p2, ..., with these rewards."""
    return [
        replace(SAMPLE, step=step, uid=f"p{i}", prompt=f"question {i}", turns=[f"answer {step}.{i}"], reward=reward, truth=[f"truth {i}"])
        for i, reward in enumerate(rewards, 1)
    ]


def output_of(main, arguments, monkeypatch, capsys, status):
    """Run a command in this process; returns what it wrote. status: its exit status; for one but 0 it wrote one line that says why."""
    monkeypatch.setattr(sys, "argv", [str(each) for each in arguments])
    if status == 0:
        main()
        return capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == status
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    return output
