"""Which masks depend on `mask_seed`: what the configuration knows of a family (`is_seeded`) is what the family does."""

import numpy as np
import pytest

from mth.config.choices import FIXED_FAMILIES, is_seeded
from mth.config.compose import compose
from mth.config.options import options, values
from mth.config.stored import load
from mth.tickets.masks import sample_mask

SHAPES = {f"layers.{layer}.weight": (40, 50) for layer in range(4)}
WEIGHTS = {name: np.random.default_rng(0).standard_normal(2000) for name in SHAPES}


def drawn(option, percent, seed):
    mask = load(compose([f"mask={option}"])).mask
    return {
        name: None if found is None else found.tolist() for name, found in sample_mask(SHAPES, mask, percent, seed, WEIGHTS.get).items()
    }


@pytest.mark.parametrize("option", sorted({*options("mask")} - {"own"}))
def test_a_mask_seed_counts_where_the_mask_depends_on_it(option):
    mask = load(compose([f"mask={option}"])).mask
    assert (drawn(option, 99, 0) != drawn(option, 99, 10)) is is_seeded(mask.family, mask.budget)
    assert is_seeded(mask.family, mask.budget and mask.budget.name) is is_seeded(mask.family, mask.budget)  # as a stored file has it


@pytest.mark.parametrize("option", ["first_layer_whole", "last_layer_whole"])
def test_a_whole_layer_is_the_same_at_every_sparsity(option):
    assert drawn(option, 99, 0) == drawn(option, 99.9, 0)


def test_families_that_draw_nothing_exist():
    assert set(FIXED_FAMILIES) <= set(values("mask", "family"))
