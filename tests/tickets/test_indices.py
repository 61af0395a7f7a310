"""Numbers of active entries on the real Qwen2.5 shapes."""

import math

from mth.tickets.indices import active_count, total_parameters
from tests.tickets.counts import COUNTS, TOTALS


def test_totals_count_the_tied_embedding_once(real):
    name, shapes = real
    assert (total_parameters(shapes.values()), len(shapes)) == TOTALS[name]
    assert "lm_head.weight" not in shapes


def test_active_counts_of_the_paper(real):
    name, shapes = real
    for percent, (active, empty) in COUNTS[name].items():
        counts = [active_count(math.prod(shape), percent) for shape in shapes.values()]
        assert (sum(counts), counts.count(0)) == (active, empty)


def test_counts_are_exact_where_floating_point_is_not():
    assert active_count(10_000, 99.99) == 1  # 10000 * (1 - 0.9999) is 0.99999... in doubles
    assert active_count(1000, 99.9) == 1
    assert active_count(100, 0) == 100
