"""A made-up study of several tasks: full training with five seeds, twenty masks, a lost level, layers, and what each task forgot."""

import math

import pandas as pd
import pytest

from mth.analysis.answers import answers
from mth.analysis.figures import masks
from mth.analysis.levels import levels
from mth.analysis.matrix import changes, matrices
from mth.analysis.needs import Need, need
from mth.analysis.page import settings_of
from mth.analysis.rates import best_rates
from tests.made_up import config_of, made_run, several_tasks

TASKS = ["arithmetic", "names", "addition"]


@pytest.fixture(scope="module")
def settings():
    return settings_of(several_tasks("tiny", TASKS, ["arithmetic", "names"]), "pass_at_1")


def test_training_seeds_are_no_settings_of_their_own(settings):
    assert [len(setting.runs) for setting in settings] == [33, 33]
    assert [setting.config.seed.train for setting in settings] == [42, 42]  # the one that most runs have


def test_full_training_has_a_mean_and_a_spread_over_its_seeds(settings):
    table = levels(settings[0]).set_index(["task", "sparsity"])
    full = table.loc[("arithmetic", 0)]
    assert (full["runs"], full["rate"]) == (5, 1e-5)  # the rate that was worse on training prompts has one run and is not used
    assert full["mean"] == pytest.approx(0.9)
    assert full["std"] == pytest.approx(pd.Series([0.88, 0.89, 0.90, 0.91, 0.92]).std())
    per_prompt = pd.Series([1.0] * 88 + [0.8, 0.6, 0.4, 0.2] + [0.0] * 8)  # mean over seeds
    assert full["error"] == pytest.approx(math.hypot(per_prompt.std() / 10, full["std"] / math.sqrt(5)))
    near = table.loc[("arithmetic", 99)]
    assert (near["runs"], near["successes"]) == (20, 19)


def test_the_table_of_masks_has_the_spread_of_full_training(settings):
    chosen = [run for run in settings[0].runs if run.sparsity in (0, 99) and run.config.mask.family == "random"]
    (item,) = masks.make(settings[0], Need("fig1_masks_1.5b", chosen, [], 0, ""))
    row = item.table.iloc[0]
    assert (row["full runs"], row["full std"], row["full"]) == (5, pytest.approx(0.0158), pytest.approx(0.9))
    assert "full training, 5 seeds" in [text.get_text() for text in item.figure.axes[0].get_legend().get_texts()]
    assert "Full training has several training seeds" in item.caption
    assert len({axes.get_ylim() for axes in item.figure.axes}) == 1  # the panels can be compared


def test_the_answers_are_those_that_were_made_up(settings):
    found = [answer.text for answer in answers(levels(settings[0]), "pass@1")]
    assert "5 training seeds, std 0.016" in found[0]
    assert found[1].startswith("19 of 20 random masks at 99 % reach full training minus one std of the masks")
    assert (
        found[2].startswith("Down to 99 % no level is below full training beyond its error.") and "Below it: 99.99 % by 0.340" in found[2]
    )
    assert found[3].startswith("The best learning rate grows with sparsity: 1e-05 for full training, 0.001 at 99 %, 0.01 at 99.99 %.")
    assert found[4].startswith("names was not trained.") and "Sparse runs end lower than full training: 99.99 % by 0.230" in found[4]


def test_seeds_of_training_belong_to_an_experiment_and_to_the_choice_of_a_rate(settings):
    base = config_of("model=tiny", "task=arithmetic")
    runs = [made_run(base, {"arithmetic": 0.9}, 0.0, train_seed=seed, lr=1e-4) for seed in (42, 1)]
    found = need("fig1_masks_1.5b", runs[0].config, runs)
    assert len(found.runs) == 2
    assert found.missing == len(set(found.cells)) - 1  # another seed is no cell of the experiment
    other = made_run(base, {"arithmetic": 0.9}, 0.0, lr=1e-5, reward=0.6)
    lucky = made_run(base, {"arithmetic": 0.9}, 0.0, train_seed=1, lr=1e-4, reward=1.0)
    assert best_rates([runs[0], lucky, other])[0] == 1e-5  # compared on the seed that both rates have


def test_the_command_of_a_setting_with_a_line_break_can_be_typed():
    import shlex

    from mth.config.cells import cells_of

    base = config_of("model=tiny", "task=arithmetic", "eval.tasks=[arithmetic,names]")
    run = made_run(base, {"arithmetic": 0.9, "names": 0.5}, 0.0, lr=1e-4)
    command = need("fig4_spectrum", run.config, [run], ("spectrum",)).command
    (cell,) = cells_of(shlex.split(command)[4:])
    assert cell.config.eval.per_task["names"].stop == run.config.eval.per_task["names"].stop == "\n"


def test_a_model_with_a_file_is_named_by_it():
    base = config_of("model=smollm2-135m", "task=names")
    run = made_run(base, {"names": 0.9}, 0.0, lr=1e-4)
    command = need("fig4_spectrum", run.config, [run], ("spectrum",)).command
    assert " model=smollm2-135m " in command and "model.path" not in command


def test_a_task_evaluated_like_the_trained_one_is_not_taken_for_one_with_its_own_recipe():
    base = config_of(
        "model=smollm2-135m", "task=multiplication", "eval.tasks=[multiplication,weekdays]", "eval.per_task.weekdays.replies=8"
    )
    run = made_run(base, {"multiplication": 0.3, "weekdays": 0.1}, 0.0, lr=1e-5)
    found = need("fig7_lr", run.config, [run])
    assert found.runs == [run]
    assert "eval.per_task.weekdays.replies=8" in found.command


def test_the_matrix_has_every_trained_and_evaluated_task_by_sparsity(settings):
    table = changes(settings).set_index(["trained", "sparsity", "evaluated"])
    assert len(table) == 2 * 3 * 3
    assert table.loc[("arithmetic", 99.99, "names"), "change"] == pytest.approx(-0.25)
    assert table.loc[("names", 99.99, "names"), "change"] == pytest.approx(0.06)
    assert table.loc[("names", 0, "addition"), "change"] == pytest.approx(-0.04)
    (item,) = matrices(settings)
    assert len(item.figure.axes) == 2
    assert len({axes.images[0].get_clim() for axes in item.figure.axes}) == 1
    texts = {text.get_text() for text in item.figure.axes[0].texts}
    assert any(text.startswith("-0.250 ± ") for text in texts)
    assert "title" not in item.table


def test_no_matrix_of_one_task_and_two_evaluations():
    runs = [made_run(config_of("model=tiny", "task=arithmetic", "eval.tasks=[arithmetic,names]"), {"arithmetic": 0.9, "names": 0.4}, 0.0)]
    assert matrices(settings_of(runs, "pass_at_1")) == []


def test_settings_with_the_same_model_and_task_have_titles_that_differ():
    runs = [made_run(config_of("model=tiny", "task=arithmetic", f"seed.eval={seed}"), {"arithmetic": 0.9}, 0.0) for seed in (1, 2)]
    titles = [setting.title for setting in settings_of(runs, "pass_at_1")]
    assert titles == [f"tiny on arithmetic, 20 steps of 128 rollouts, seed.eval={seed}" for seed in (1, 2)]


def test_older_runs_without_their_prompts_have_errors_that_are_not_paired(settings):
    runs = [made_run(config_of("model=tiny", "task=arithmetic", "eval.samples=100"), {"arithmetic": 0.9}, p, lr=1e-3) for p in (0.0, 99.0)]
    for run in runs:
        for entry in run.entries:
            entry.rewards.clear()
    table = levels(settings_of(runs, "pass_at_1")[0]).set_index("sparsity")
    one = math.sqrt(0.9 * 0.1 / 99)
    assert table.loc[99, "to full error"] == pytest.approx(math.hypot(one, one))
    assert table.loc[0, "change error"] == pytest.approx(math.hypot(one, math.sqrt(0.25 / 99)))
