"""Arithmetic: answers, worked solutions, splits."""

from mth.config.schema import TaskConfig
from mth.tasks import arithmetic, build_task


def test_arithmetic_answers_and_splits():
    task = build_task(TaskConfig(name="arithmetic", train_rows=500))
    assert not {e.turns for e in task.train} & {e.turns for e in task.eval}
    problem = arithmetic.Problem("q", 5, (("+", 3), ("*", 2)))
    assert problem.answer == 16
    assert arithmetic.solution_text(problem) == "5 + 3 = 8\n8 * 2 = 16\n\\boxed{16}"
    assert arithmetic.solution_text(problem, lambda value: value + 1) == "5 + 3 = 9\n9 * 2 = 19\n\\boxed{19}"
    episode = task.train[0]
    assert task.score(episode, [f"\\boxed{{{episode.truth[0]}}}"]) == {"reward": 1.0, "strict": 1.0}
    assert task.score(episode, ["\\boxed{-1}"])["reward"] == 0.0
    assert task.score(episode, [])["reward"] == 0.0
