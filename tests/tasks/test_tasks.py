"""Building the tasks of a configuration, and choosing evaluation episodes."""

import pytest

from mth.config.options import options
from mth.foundations.errors import UserError
from mth.tasks import check_data, choose_eval, load_tasks, task_module
from tests.conftest import make_config
from tests.tasks.rows import write_rows


def test_a_source_given_for_evaluation_is_evaluated_whole(tmp_path):
    write_rows(tmp_path / "test.jsonl", [{"question": f"t{i}", "answer": f"#### {i}"} for i in range(40)])
    config = make_config(eval={"tasks": ["arithmetic", "gsm8k"], "paths": {"gsm8k": str(tmp_path / "test.jsonl")}})
    _, evaluation = load_tasks(config)
    assert len(evaluation["gsm8k"].eval) == 40
    missing = make_config(eval={"tasks": ["gsm8k"], "paths": {"gsm8k": str(tmp_path / "none.jsonl")}})
    with pytest.raises(UserError, match=r"eval\.paths\.gsm8k=.* does not exist"):
        load_tasks(missing)


def test_evaluation_rows_depend_on_the_evaluation_seed_only():
    task, evaluation = load_tasks(make_config(eval={"samples": 5, "tasks": ["arithmetic", "alphabet_sort"]}))
    assert list(evaluation) == ["arithmetic", "alphabet_sort"]
    assert choose_eval(task, 5, 2001) == choose_eval(task, 5, 2001) != choose_eval(task, 5, 1)
    assert len(choose_eval(task, 10**9, 0)) == len(task.eval)


def test_every_task_has_a_module():
    for name in options("task"):
        module = task_module(name)
        assert callable(module.build)
        assert module.SOURCE is None or module.SOURCE.count("/") == 1


def test_local_data_are_checked_and_hub_data_are_not(tmp_path):
    check_data(make_config(eval={"tasks": ["arithmetic", "gsm8k"]}))
    with pytest.raises(UserError, match=r"task arithmetic has 2 training rows, fewer than the 4 prompts of a step"):
        check_data(make_config(task={"train_rows": 2}))
    with pytest.raises(UserError, match=r"eval\.paths\.gsm8k=.* does not exist"):
        check_data(make_config(eval={"tasks": ["gsm8k"], "paths": {"gsm8k": str(tmp_path / "none.jsonl")}}))
