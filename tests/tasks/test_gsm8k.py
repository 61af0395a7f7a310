"""GSM8K: rows to episodes, and its own test split."""

import pytest

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.tasks import build_task
from mth.tasks.gsm8k import gsm8k_episodes
from tests.tasks.rows import write_rows


def test_gsm8k_rows():
    (episode,) = gsm8k_episodes([{"question": "How many?", "answer": "work <<1+1=2>>\n#### 2,125"}], Prompt.paper)
    assert episode.truth == ("2125",)
    assert episode.system.startswith("You are a helpful mathematical AI assistant.")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question": "q", "answer": "2"}, "row 1: the answer has no '#### ' line"),
        ({"question": "q", "answer": None}, "row 1: the answer has no '#### ' line"),
        ({"question": "q", "answer": "work\n#### "}, "row 1 has no gold answer"),
        ({"question": None, "answer": "#### 2"}, "row 1 has no question"),
        ({"question": " ", "answer": "#### 2"}, "row 1 has no question"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row, line):
    with pytest.raises(UserError, match=f"task.path=a.jsonl: {line}"):
        gsm8k_episodes([{"question": "q", "answer": "#### 1"}, row], Prompt.paper, "a.jsonl")


def test_local_folder_with_its_own_test_split(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(10)])
    write_rows(tmp_path / "test.jsonl", [{"question": f"t{i}", "answer": f"#### {i}"} for i in range(4)])
    task = build_task(TaskConfig(name="gsm8k", path=str(tmp_path)))
    assert (len(task.train), len(task.eval)) == (10, 4)
