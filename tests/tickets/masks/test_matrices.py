"""Masks of the weight matrices inside the decoder layers."""

import math

import numpy as np
import pytest

from mth.foundations.errors import UserError
from mth.tickets.indices import active_count
from mth.tickets.masks import sample_mask


def test_only_matrices_of_decoder_layers_are_active_and_their_entries_are_those_of_a_random_mask(real):
    _, shapes = real
    random, found = (sample_mask(shapes, family, 99.9, 3) for family in ("random", "matrices"))
    for name, shape in shapes.items():
        inside = ".layers." in name and name.endswith("proj.weight")
        assert found[name].size == (active_count(math.prod(shape), 99.9) if inside else 0), name
        assert not inside or np.array_equal(found[name], random[name])


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match=r"mask\.family=matrices needs a model whose tensors are named by decoder layer"):
        sample_mask({"w": (10, 10)}, "matrices", 50, 0)
