"""Mask families are found by their files, and know their options."""

import numpy as np
import pytest

from mth.config.options import options
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets import masks
from mth.tickets.masks import active_counts, families, lazy_mask, sample_mask
from mth.tickets.masks.base import Family


def test_every_family_has_a_configuration_of_its_name():
    assert sorted(families()) == ["first_layer", "last_layer", "magnitude", "matrices", "middle_layer", "random"]
    assert set(families()) <= set(options("mask"))


def test_unknown_families_and_options_are_errors():
    with pytest.raises(
        UserError, match=r"mask\.family=none is unknown; choose one of first_layer, last_layer, magnitude, matrices, middle_layer, random"
    ):
        sample_mask({"w": (10, 10)}, "none", 50, 0)
    with pytest.raises(UserError, match=r"mask\.options\.rows is unknown; the options of mask\.family=random are: none"):
        sample_mask({"w": (10, 10)}, MaskConfig("random", options={"rows": 2}), 50, 0)


def test_a_family_finds_its_options_with_defaults(monkeypatch):
    def first_entries(shapes, counts, mask_seed, mask, weights):
        return lambda name: np.arange(mask.options["skip"], mask.options["skip"] + counts[name], dtype=np.int32)

    def counts(shapes, percent, mask):
        return dict.fromkeys(shapes, mask.options["each"])

    family = Family(first_entries, counts, options={"skip": 3, "each": 2})
    monkeypatch.setattr(masks, "families", lambda: {"first_entries": family})
    shapes = {"a": (4, 4), "b": (9,)}
    assert [index.tolist() for index in sample_mask(shapes, "first_entries", 50, 0).values()] == [[3, 4], [3, 4]]
    mask = MaskConfig("first_entries", options={"each": 1})
    assert active_counts(shapes, 50, mask) == {"a": 1, "b": 1}
    assert lazy_mask(shapes, mask, 50, 0)("b").tolist() == [3]
