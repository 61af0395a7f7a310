"""Answers in a box: which grades are reported, which is the reward, and what the configuration chooses."""

import pytest

from mth.config.cells import cells_of
from mth.config.choices import Grader, Prompt
from mth.config.schema import TaskConfig
from mth.tasks import boxed
from mth.tasks.base import Episode
from mth.tasks.boxed import SYSTEM, boxed_task

EPISODE = Episode("row0", ("a",), (r"\frac{1}{2}",))


def task(**options):
    return boxed_task("math", [EPISODE], [EPISODE], TaskConfig(grader_timeout=20.0, **options))


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({}, {"reward": 0.0, "strict": 0.0}),
        ({"grader": Grader.environment}, {"reward": 0.0, "strict": 0.0, "environment": 0.0}),
        ({"grader": Grader.math_verify}, {"reward": 1.0, "strict": 0.0, "math_verify": 1.0, "grader_timeouts": 0.0}),
        ({"every_grader": True}, {"reward": 0.0, "strict": 0.0, "math_verify": 1.0, "grader_timeouts": 0.0}),
    ],
)
def test_the_reward_and_what_else_is_reported(options, scores):
    assert task(**options).score(EPISODE, [r"\boxed{0.5}"]) == scores


@pytest.mark.parametrize("options", [{}, {"grader": Grader.environment}, {"grader": Grader.math_verify}, {"every_grader": True}])
def test_only_grades_of_the_library_begin_early(options, monkeypatch):
    begun = []
    monkeypatch.setattr(boxed, "begin_math_verify", lambda *arguments: begun.append(arguments))
    begin = task(**options).begin_scores
    if begin is not None:
        begin([(EPISODE, ["a"])])
    library = options.get("grader") is Grader.math_verify or "every_grader" in options
    assert begun == ([([("a", r"\frac{1}{2}")], 20.0)] if library else [])


def test_a_batch_is_graded_in_one_call_and_timeouts_are_counted(monkeypatch):
    calls = []

    def grade(answers, seconds):
        calls.append((answers, seconds))
        return [1.0, None, 0.0]

    monkeypatch.setattr(boxed, "math_verify", grade)
    scores = task(grader=Grader.math_verify).scores([(EPISODE, ["a"]), (EPISODE, ["b"]), (EPISODE, [])])
    assert calls == [([("a", r"\frac{1}{2}"), ("b", r"\frac{1}{2}"), ("", r"\frac{1}{2}")], 20.0)]
    assert [(score["reward"], score["grader_timeouts"]) for score in scores] == [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("command", "grader"),
    [
        ("task=math", Grader.math_verify),
        ("task=math500", Grader.math_verify),
        ("task=gsm8k", Grader.strict),
        ("task=arithmetic", Grader.strict),
        ("task=math algorithm=as_run", Grader.math_verify),
        ("task=gsm8k algorithm=as_run", Grader.environment),
        ("task=arithmetic algorithm=as_run", Grader.strict),
        ("task=math task.grader=strict", Grader.strict),
        ("task=gsm8k algorithm=as_run task.grader=math_verify", Grader.math_verify),
    ],
)
def test_the_grader_belongs_to_the_task(command, grader):
    (cell,) = cells_of([*command.split(), "lr=1e-3"])
    assert cell.config.task.grader is grader


def test_the_environments_prompt():
    assert SYSTEM[Prompt.environment] == "Please reason step by step, and put your final answer within \\boxed{}."
