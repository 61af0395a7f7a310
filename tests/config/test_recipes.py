"""How a task is evaluated that is not trained: by its own recipe, unless somebody says otherwise."""

import json
from pathlib import Path

import pytest

from mth.config.cells import cells_of
from mth.config.choices import Grader
from mth.config.compose import compose
from mth.config.identity import identity
from mth.config.recipes import load_run, with_own_recipes
from mth.config.stored import from_plain, to_plain
from mth.evaluate import overlay
from mth.foundations.errors import UserError

RESULTS = Path(__file__).parents[2] / "docs" / "results"
BOTH = ["task=arithmetic", "eval.tasks=[arithmetic,alphabet_sort]"]


def config_of(*overrides):
    return load_run(compose(overrides), overrides)


def limits(config):
    return {task: config.eval.of(task).max_tokens for task in config.eval.tasks}


def test_each_task_has_the_limit_of_its_own_recipe():
    assert limits(config_of(*BOTH)) == {"arithmetic": 40, "alphabet_sort": 96}
    assert limits(config_of("task=alphabet_sort", "eval.tasks=[arithmetic,alphabet_sort]")) == {"arithmetic": 40, "alphabet_sort": 96}
    assert limits(config_of(*BOTH, "rollout.max_tokens=24")) == {"arithmetic": 24, "alphabet_sort": 96}


def test_a_grid_and_a_single_run_agree():
    (cell,) = cells_of(BOTH)
    assert to_plain(cell.config) == to_plain(config_of(*BOTH))
    first, second = cells_of(["-m", "eval.tasks=[arithmetic,alphabet_sort]", "task=arithmetic,alphabet_sort"])
    assert [limits(cell.config) for cell in (first, second)] == [{"arithmetic": 40, "alphabet_sort": 96}] * 2


def test_what_is_typed_goes_before_a_recipe():
    assert limits(config_of(*BOTH, "eval.max_tokens=50")) == {"arithmetic": 50, "alphabet_sort": 50}
    assert limits(config_of(*BOTH, "eval.per_task.alphabet_sort.max_tokens=70")) == {"arithmetic": 40, "alphabet_sort": 70}
    assert limits(config_of(*BOTH, "eval.per_task.alphabet_sort.max_tokens=40")) == {"arithmetic": 40, "alphabet_sort": 40}
    config = config_of(*BOTH, "eval.samples=512", "eval.per_task.arithmetic.samples=100", "eval.temperature=0")
    assert [(config.eval.of(task).samples, config.eval.of(task).temperature) for task in config.eval.tasks] == [(100, 0), (512, 0)]


def test_samples_temperature_and_data_come_from_the_recipe_too():
    config = config_of("model=qwen2.5-0.5b-instruct", "task=arithmetic", "lr=1e-4", "eval.tasks=[arithmetic,alphabet_sort]")
    own = config.eval.of("alphabet_sort")
    assert (own.samples, own.temperature, own.max_tokens) == (1024, 0.7, 128)
    assert config.eval.paths["alphabet_sort"] == "kalomaze/alphabetic-arxiv-authors-it1"
    elsewhere = config_of("model=qwen2.5-0.5b", "task=arithmetic", "lr=1e-4", "eval.tasks=[alphabet_sort]")
    assert elsewhere.eval.of("alphabet_sort").max_tokens == 128  # another model's recipe says more than the trained task's limit
    assert elsewhere.eval.paths["alphabet_sort"] is None


def test_graders_belong_to_tasks():
    config = config_of("model=qwen2.5-1.5b", "task=math")
    assert config.task.grader is Grader.math_verify
    assert [config.eval.of(task).grader for task in config.eval.tasks] == [Grader.strict, None]  # gsm8k; math500 as the trained task
    assert config_of("model=qwen2.5-0.5b", "task=gsm8k", "eval.tasks=[math500]").eval.of("math500").grader is Grader.math_verify
    typed = config_of("model=qwen2.5-1.5b", "task=math", "task.grader=strict")
    assert [typed.eval.of(task).grader for task in typed.eval.tasks] == [None, None]


def test_an_experiment_file_counts_as_typed(tmp_path, monkeypatch):
    import shutil

    from mth.config import options, recipes
    from mth.foundations import paths

    shutil.copytree(paths.conf_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\neval:\n  max_tokens: 33\n")
    caches = (options.options, options.values, recipes._read)
    for module in ("mth.config.options", "mth.config.recipes", "mth.config.compose"):
        monkeypatch.setattr(f"{module}.conf_dir", lambda: tmp_path / "conf")
    for cache in caches:
        cache.cache_clear()
    try:
        assert limits(config_of("experiment=mine", *BOTH)) == {"arithmetic": 33, "alphabet_sort": 33}
    finally:
        for cache in caches:
            cache.cache_clear()


def test_a_stored_run_keeps_what_it_was_measured_with():
    stored = json.loads((RESULTS / "alphabet_sort" / "runs.jsonl").read_text().splitlines()[0])["config"]
    assert limits(from_plain(stored)) == {"alphabet_sort": 96, "arithmetic": 96}
    again = from_plain(to_plain(config_of(*BOTH)))
    assert limits(again) == {"arithmetic": 40, "alphabet_sort": 96}
    assert identity(again) == identity(config_of(*BOTH)) != identity(config_of(*BOTH, "eval.max_tokens=40"))


def test_an_equal_limit_is_no_difference():
    typed = config_of("task=arithmetic", "eval.per_task.arithmetic.max_tokens=40", "eval.per_task.gsm8k.samples=7")
    assert typed.eval.per_task == {}
    assert identity(typed) == identity(config_of("task=arithmetic"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.per_task.arithmetic.samples=0", r"eval\.per_task\.arithmetic\.samples=0 must be at least 1"),
        ("eval.per_task.chess.samples=5", "chess.*there is no such key"),
        ("eval.per_task.arithmetic.grader=kind", "grader"),
    ],
)
def test_bad_values_name_their_key(override, message):
    with pytest.raises(UserError, match=message):
        config_of("task=arithmetic", override)


def test_evaluate_takes_new_tasks_by_their_own_recipes():
    stored = to_plain(config_of("task=arithmetic", "eval.samples=99"))

    def evaluated(*overrides):
        from omegaconf import OmegaConf

        plain = OmegaConf.to_container(compose(overrides), enum_to_str=True)
        return with_own_recipes(from_plain(overlay(stored, plain, list(overrides))), overrides, as_given=["arithmetic"])

    assert limits(evaluated()) == {"arithmetic": 40}
    assert limits(evaluated("task=alphabet_sort")) == {"alphabet_sort": 96}
    assert limits(evaluated("eval.tasks=[arithmetic,alphabet_sort]")) == {"arithmetic": 40, "alphabet_sort": 96}
    assert limits(evaluated("task=alphabet_sort", "eval.max_tokens=20")) == {"alphabet_sort": 20}
    one = evaluated("eval.tasks=[arithmetic,alphabet_sort]", "eval.per_task.alphabet_sort.max_tokens=64")
    assert limits(one) == {"arithmetic": 40, "alphabet_sort": 64}
    assert [one.eval.of(task).samples for task in one.eval.tasks] == [99, 256]
