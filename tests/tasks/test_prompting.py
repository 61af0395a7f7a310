"""Prompts as chat or raw text, behind worked examples; each evaluated task by its own file."""

import pytest

from mth.config.cells import cells_of
from mth.config.identity import identity
from mth.foundations.errors import UserError
from mth.tasks import load_tasks
from tests.tasks.rows import write_rows


def config_of(*overrides):
    (cell,) = cells_of(list(overrides))
    return cell.config


def test_evaluated_tasks_have_the_prompts_of_their_own_files():
    config = config_of("task=multiplication", "eval.tasks=[multiplication,arithmetic,addition]", "task.shots=2")
    task, evaluated = load_tasks(config)
    assert (len(task.train[0].turns[0].split("\n")), task.stop) == (3, "\n")
    chat = evaluated["arithmetic"]
    assert (chat.stop, chat.eval[0].raw, chat.eval[0].shots) == ("", False, ())
    assert len(evaluated["addition"].eval[0].turns[0].split("\n")) == 5, "task.shots of the trained task"
    back = load_tasks(config_of("task=arithmetic", "eval.tasks=[arithmetic,multiplication]"))[1]["multiplication"]
    assert (back.stop, back.eval[0].raw) == ("\n", True)
    own = load_tasks(config_of("task=arithmetic", "eval.tasks=[multiplication]", "eval.per_task.multiplication.shots=1"))[1]
    assert len(own["multiplication"].eval[0].turns[0].split("\n")) == 2


def test_examples_in_a_chat_are_turns():
    config = config_of("task=multiplication", "task.prompt_format=chat", "task.shots=2", "task.stop=''")
    task, _ = load_tasks(config)
    assert task.eval[0].shots == (("3 * 12 =", "36"), ("7 * 15 =", "105"))
    assert (task.eval[0].raw, task.stop, len(task.eval[0].turns)) == (False, "", 1)


def gsm8k(tmp_path, *overrides):
    rows = [{"question": f"How many are {i} + {{1}}?", "answer": f"It is <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(30)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows[:5])
    return load_tasks(config_of("task=gsm8k", f"task.path={tmp_path}", "train.batch_size=16", *overrides))[0]


def test_gsm8k_and_math_take_worked_examples_from_their_training_rows(tmp_path):
    task = gsm8k(tmp_path, "task.shots=2", "task.prompt_format=raw", "task.prompt=environment")
    first, second = task.worked[:2]
    assert first == ("How many are 0 + {1}?", "It is 1.\n\\boxed{1}")
    prompt = task.eval[0].turns[0]
    assert prompt.startswith("Please reason step by step")
    assert prompt.endswith(
        f"Question: {first[0]}\nAnswer: {first[1]}\n\nQuestion: {second[0]}\nAnswer: {second[1]}\n\nQuestion: How many are 0 + {{1}}?\nAnswer:"
    )
    trained = {episode.turns[0].rpartition("Question: ")[2].removesuffix("\nAnswer:") for episode in task.train}
    assert not {first[0], second[0]} & trained, "an example is trained"
    assert len(task.train) == 28
    assert len(gsm8k(tmp_path).train) == 30, "rows were set aside without examples"


def test_what_prompts_cannot_be_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^task\.shots=5: multiplication has 4 worked examples$"):
        load_tasks(config_of("task=multiplication", "task.shots=5"))
    with pytest.raises(UserError, match=r"^task\.shots=1: alphabet_sort has 0 worked examples$"):
        load_tasks(config_of("task=alphabet_sort", "task.shots=1", "task.train_rows=16"))
    with pytest.raises(UserError, match=r"^task\.prompt_format=raw: alphabet_sort has several turns; use task\.prompt_format=chat$"):
        load_tasks(config_of("task=alphabet_sort", "task.prompt_format=raw", "task.train_rows=16"))


def test_keys_that_are_not_used_leave_identities_alone():
    assert identity(config_of("task=arithmetic")) == identity(
        config_of("task=arithmetic", "task.shots=0", "task.stop=''", "eval.replies=1")
    )
    assert identity(config_of("task=arithmetic")) != identity(config_of("task=arithmetic", "task.shots=1"))
