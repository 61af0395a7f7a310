"""Episodes that exceed the context are found before anything is generated, and can be left out."""

import pytest

from mth.foundations.errors import UserError
from mth.rollout.lengths import at_most, fitting, prompt_tokens
from mth.rollout.player import ChatRenderer
from mth.tasks import load_tasks
from mth.tasks.base import Episode, Task
from mth.training.setup import assemble
from tests.conftest import make_config
from tests.tasks.rows import write_rows


def task_of(*sizes):
    episodes = [Episode(f"row{i}", (" word" * size,), ("a",)) for i, size in enumerate(sizes)]
    return Task("t", episodes, episodes[:1], lambda episode, replies: {"reward": 0.0})


@pytest.mark.parametrize("name", ["arithmetic", "alphabet_sort", "multiplication", "gsm8k"])
def test_the_bound_without_a_tokenizer_holds(tokenizer, name, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"question": f"Wie groß? {i} 日本 🙂", "answer": "#### 1"} for i in range(20)])
    path = str(tmp_path / "rows.jsonl") if name == "gsm8k" else None
    task = load_tasks(make_config(task={"name": name, "path": path, "max_turns": 3}))[0]
    renderer = ChatRenderer(tokenizer)
    for episode in [*task.train[:20], *task.eval[:20]]:
        assert 0 < prompt_tokens(renderer, episode) <= at_most(episode)


def test_what_does_not_fit_is_named(tokenizer):
    renderer = ChatRenderer(tokenizer)
    task = task_of(3, 900, 20, 1200, 1500, 1600)
    long = prompt_tokens(renderer, task.train[1])
    with pytest.raises(
        UserError, match=rf"^task t: row1 \({long:,} tokens\), row3 .*, row4 .* and 1 more: too long for the model's context"
    ):
        fitting(task, renderer, long + 7, 8, None)
    assert fitting(task_of(3, 900), renderer, long + 8, 8, None).train == task_of(3, 900).train
    two = Task("t", [Episode("row0", (" word" * 3, " word" * 3), ("a", "b"))], [], task.score)
    tokens = prompt_tokens(renderer, two.train[0])
    assert fitting(two, renderer, tokens + 16, 8, None) is two
    with pytest.raises(UserError, match="row0"):
        fitting(two, renderer, tokens + 15, 8, None)


def test_long_prompts_can_be_left_out(tokenizer, capsys):
    task = task_of(3, 900, 20)
    kept = fitting(task, ChatRenderer(tokenizer), 512, 8, 400)
    assert [episode.uid for episode in kept.train] == ["row0", "row2"] and kept.eval == task.eval
    assert capsys.readouterr().err == "t: 1 of 4 episodes have prompts of more than 400 tokens and are left out\n"


def test_a_run_with_one_overlong_row_ends_before_its_first_step(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"question": "word " * 6000, "answer": "#### 1"}])
    section = {"name": "gsm8k", "path": str(tmp_path / "rows.jsonl"), "holdout": False}
    with pytest.raises(UserError, match=r"row20 \(\d+,\d+ tokens\).*task\.max_prompt_tokens="), assemble(make_config(task=section)):
        pass
    with assemble(make_config(task=section | {"max_prompt_tokens": 200})) as parts:
        assert len(parts.task.train) == 20
