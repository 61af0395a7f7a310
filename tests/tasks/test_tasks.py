"""Building the tasks of a configuration, and choosing evaluation episodes."""

import pytest

from mth.config.options import options
from mth.foundations.errors import UserError
from mth.tasks import check_data, choose_eval, load_tasks, task_module
from mth.tasks.base import prompt_of
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


def gsm8k_rows(prompts):
    return [{"question": prompt, "answer": f"#### {i}"} for i, prompt in enumerate(prompts)]


def gsm8k(tmp_path, prompts, **sections):
    write_rows(tmp_path / "rows.jsonl", gsm8k_rows(prompts))
    section = {"name": "gsm8k", "path": str(tmp_path / "rows.jsonl")} | sections.pop("task", {})
    return load_tasks(make_config(task=section, **sections))


def test_a_prompt_is_trained_or_evaluated_never_both(tmp_path):
    """Two of three rows repeat a prompt, as in files that were augmented."""
    train, evaluation = gsm8k(tmp_path, [f"q{i % 100}" for i in range(300)], eval={"tasks": ["gsm8k"]})
    trained, held = ({prompt_of(episode) for episode in part} for part in (train.train, evaluation["gsm8k"].eval))
    assert not trained & held
    assert (len(train.train) + len(train.eval), len(trained | held)) == (300, 100)
    assert 60 <= len(train.eval) <= 62


def test_one_prompt_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match=r"1 usable prompts cannot be split"):
        gsm8k(tmp_path, ["q"] * 9, eval={"tasks": ["gsm8k"]})
    train, _ = gsm8k(tmp_path, ["q", "q", "q", "r"], eval={"tasks": ["gsm8k"]})
    assert train.train and train.eval


def test_rows_are_held_out_only_if_they_are_evaluated(tmp_path):
    elsewhere, _ = gsm8k(tmp_path, [f"q{i}" for i in range(100)], eval={"tasks": ["arithmetic"]})
    assert len(elsewhere.train) == 100
    here, _ = gsm8k(tmp_path, [f"q{i}" for i in range(100)], eval={"tasks": ["arithmetic", "gsm8k"]})
    assert len(here.train) == 80


def test_evaluated_prompts_that_are_also_trained_are_named(tmp_path, capsys):
    write_rows(tmp_path / "test.jsonl", gsm8k_rows(["q1", "new", "q2"]))
    gsm8k(tmp_path, [f"q{i}" for i in range(50)], eval={"tasks": ["gsm8k"], "paths": {"gsm8k": str(tmp_path / "test.jsonl")}})
    assert "2 of 3 evaluation prompts of gsm8k are also trained" in capsys.readouterr().err
    gsm8k(tmp_path, [f"q{i}" for i in range(50)], eval={"tasks": ["gsm8k"]})
    assert "also trained" not in capsys.readouterr().err


def test_an_evaluated_task_has_its_own_grader(tmp_path):
    write_rows(tmp_path / "test.jsonl", gsm8k_rows(["q1", "q2"]))
    paths = {"gsm8k": str(tmp_path / "test.jsonl")}
    _, tasks = gsm8k(tmp_path, ["a", "b", "c"], eval={"tasks": ["gsm8k"], "paths": paths, "per_task": {"gsm8k": {"grader": "math_verify"}}})
    assert tasks["gsm8k"].score(tasks["gsm8k"].eval[1], [r"\boxed{\frac{2}{2}}"])["reward"] == 1
