"""Local data: what is a path, and what is wrong with bad files."""

import pytest

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.tasks import build_task
from mth.tasks.data import looks_local
from tests.tasks.rows import write_rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "missing.jsonl"), "does not exist"),
        (lambda p: str(p), "has no train.jsonl"),
        (
            lambda p: write_rows(p / "train.jsonl", [{"prompt": "x"}]) or str(p / "train.jsonl"),
            "column question, answer is missing; found prompt",
        ),
        (lambda p: (p / "bad.jsonl").write_text("{not json\n") and str(p / "bad.jsonl"), "cannot be read"),
        (lambda p: (p / "empty.jsonl").write_text("") or str(p / "empty.jsonl"), "no rows"),
        (lambda p: write_rows(p / "null.jsonl", [{"question": "q", "answer": None}]) or str(p / "null.jsonl"), "row 0"),
        (lambda p: (p / "data.csv").write_text("a\n1\n") and str(p / "data.csv"), "only .jsonl, .json, .parquet files"),
    ],
)
def test_bad_data_is_one_clear_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        build_task(TaskConfig(name="gsm8k", path=make(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_path_is_told_from_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_local("./data") and looks_local("/data") and looks_local("rows.jsonl")
    assert not looks_local("openai/gsm8k")
    (tmp_path / "openai/gsm8k").mkdir(parents=True)
    assert looks_local("openai/gsm8k")
