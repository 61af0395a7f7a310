"""The figures that the report finds: their order on the page and their experiments."""

from dataclasses import replace

import pytest

from mth.analysis.figures import figures
from mth.analysis.figures.structured import FIGURE
from mth.analysis.needs import need
from mth.analysis.sources import read_folder
from mth.analysis.style import line_style
from mth.config.options import options
from mth.config.paper import TASK_OF
from mth.config.schema import Config, ModelConfig
from tests import recorded

ORDER = ["masks", "sparsity", "forgetting", "structured", "learning_rates", "spectrum", "theory", "overlap", "memory"]


def test_order_on_the_page():
    assert [figure.name for figure in figures()] == ORDER
    assert len({figure.position for figure in figures()}) == len(ORDER)


def test_no_two_lines_of_a_figure_look_alike():
    assert len({tuple(line_style(number).values()) for number in range(18)}) == 18


def test_every_experiment_is_a_file():
    assert {name for figure in figures() for name in figure.experiments} <= set(options("experiment"))


@pytest.mark.parametrize("model", TASK_OF)
def test_an_experiment_with_a_size_goes_to_the_model_of_that_size(model):
    masks = figures()[0]
    expected = "fig2_masks_0.5b" if "0.5b" in model else "fig1_masks_1.5b"
    config = Config(model=ModelConfig(name=model, path=None if model == "tiny" else "some/path", lr_table="tiny"))
    assert masks.experiment(config) == expected


def test_any_mask_of_the_experiments_sparsity_stands_beside_the_single_layers(tmp_path):
    runs = read_folder(recorded.unpack(tmp_path)).runs
    first = next(run for run in runs if run.config.mask.family == "first_layer")
    middle = replace(first, config=replace(first.config, mask=replace(first.config.mask, family="middle_layer")))
    sparser = replace(middle, config=replace(middle.config, sparsity=replace(middle.config.sparsity, percent=99.9)))
    found = need(*FIGURE.experiments, first.config, [*runs, middle, sparser], FIGURE.ignore).runs
    assert first in found and middle in found and sparser not in found
