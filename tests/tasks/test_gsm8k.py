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
    with pytest.raises(UserError, match="row 0"):
        gsm8k_episodes([{"question": "q", "answer": "2"}], Prompt.paper)


def test_local_folder_with_its_own_test_split(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(10)])
    write_rows(tmp_path / "test.jsonl", [{"question": f"t{i}", "answer": f"#### {i}"} for i in range(4)])
    task = build_task(TaskConfig(name="gsm8k", path=str(tmp_path)))
    assert (len(task.train), len(task.eval)) == (10, 4)
