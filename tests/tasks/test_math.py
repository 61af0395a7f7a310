"""MATH and MATH-500: rows to episodes."""

import pandas as pd
import pytest

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.tasks import build_task
from mth.tasks.math import math_episodes
from tests.tasks.rows import write_rows


def test_rows_without_a_gold_answer_are_dropped_and_counted(capsys):
    rows = [
        {"problem": "a", "solution": r"so \boxed{\frac{1}{2}}"},
        {"problem": "b", "solution": r"so \boxed{}"},
        {"problem": "c", "solution": r"so \boxed 2$."},
        {"problem": "d", "solution": "nothing"},
        {"problem": "e", "solution": "x", "answer": "7"},
        {"problem": "f", "solution": r"so \fbox{8}"},
        {"problem": "g", "answer": " "},
    ]
    assert [e.truth[0] for e in math_episodes(rows, Prompt.environment, "a.jsonl")] == [r"\frac{1}{2}", "2", "7", "8"]
    assert capsys.readouterr().err == "warning: a.jsonl: 3 of 7 rows have no gold answer and are dropped\n"
    math_episodes(rows[:1], Prompt.environment)
    assert capsys.readouterr().err == ""


def test_answers_may_be_numbers():
    rows = [{"problem": "a", "answer": 0}, {"problem": "b", "answer": 2.5}]
    assert [e.truth[0] for e in math_episodes(rows, Prompt.paper)] == ["0", "2.5"]


@pytest.mark.parametrize(
    ("row", "line"),
    [({"problem": None, "answer": "1"}, "row 0 has no problem"), ({"problem": "a", "answer": None}, "no row has a gold answer")],
)
def test_rows_that_cannot_be_used_are_named(row, line):
    with pytest.raises(UserError, match=f"task.path=a.jsonl: {line}"):
        math_episodes([row], Prompt.paper, "a.jsonl")


def test_one_parquet_file_is_split_by_seed(tmp_path):
    pd.DataFrame({"problem": [f"p{i}" for i in range(20)], "answer": [str(i) for i in range(20)]}).to_parquet(tmp_path / "math.parquet")
    for path in (tmp_path, tmp_path / "math.parquet"):
        task = build_task(TaskConfig(name="math", path=str(path)))
        assert (len(task.train), len(task.eval)) == (16, 4)
        assert not {e.uid for e in task.train} & {e.uid for e in task.eval}


def test_math500_is_only_for_evaluation(tmp_path):
    write_rows(tmp_path / "test.jsonl", [{"problem": f"p{i}", "answer": str(i)} for i in range(6)])
    task = build_task(TaskConfig(name="math500", path=str(tmp_path), train_rows=0))
    assert (len(task.train), len(task.eval)) == (0, 6)
