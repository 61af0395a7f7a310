"""MATH and MATH-500: rows to episodes."""

import pandas as pd

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.tasks import build_task
from mth.tasks.math import math_episodes
from tests.tasks.rows import write_rows


def test_math_rows_drop_empty_gold():
    rows = [
        {"problem": "a", "solution": r"so \boxed{\frac{1}{2}}"},
        {"problem": "b", "solution": r"so \boxed{}"},
        {"problem": "c", "solution": r"so \boxed 2$."},
        {"problem": "d", "solution": "nothing"},
        {"problem": "e", "solution": "x", "answer": "7"},
    ]
    assert [e.truth[0] for e in math_episodes(rows, Prompt.environment)] == [r"\frac{1}{2}", "2", "7"]


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
