"""The paper's tables at the real shapes."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mth.analysis import tables
from mth.analysis.output import markdown, texts
from mth.analysis.tables import table_2, table_3


def test_tables_2_and_3_at_the_real_shapes():
    table = table_2().set_index(["model", "sparsity %"])
    assert table.loc[("qwen2.5-1.5b", 99), "active"] == 15_436_967
    assert table.loc[("qwen2.5-0.5b", 99.9), "tensors with none"] == 121
    assert table.loc[("qwen2.5-1.5b", 99.9), "tensors with none"] == 56  # biases of keys and values; norms of 1536 entries keep one
    assert (table["learning rate"] == table["learning rate, paper"]).all()
    overlap, tensors = table_3(["qwen2.5-0.5b"])
    assert len(tensors) == 3 * 290
    largest = tensors[(tensors["sparsity %"] == 99) & (tensors["tensor"] == "model.embed_tokens.weight")].iloc[0]
    assert largest["mean"] == pytest.approx(largest["p/(2-p)"], rel=0.02)
    assert overlap["pairs"].tolist() == [10, 10, 10]
    assert overlap["mean"].iloc[0] == pytest.approx(overlap["p/(2-p)"].iloc[0], rel=0.01)
    assert overlap["paper"].tolist() == ["0.005", "0.0005", "0.000055"]


def test_overlap_columns_by_hand(monkeypatch):
    """Of three masks two share one of two entries, the third shares nothing: Jaccard 1/3, 0, 0."""
    entries = {1: [0, 1], 2: [1, 2], 3: [5, 6]}

    class Found:
        tensors = ("w",)

        def pairs(self, name=None):
            sets = [set(chosen) for chosen in entries.values()]
            return np.array([len(a & b) / len(a | b) for a, b in combinations(sets, 2)])

    monkeypatch.setattr(tables, "overlap", lambda shapes, masks: Found())
    total, tensors = tables.overlap_tables("other", {"w": (10, 20)}, {99.0: list(entries)})
    for found, more in ((total, {"masks": 3, "pairs": 3}), (tensors, {"tensor": "w", "entries": 200})):
        (row,) = found.to_dict("records")
        assert row.items() >= ({"model": "other", "sparsity %": 99.0, "smallest": 0.0, "largest": 1 / 3} | more).items()
        assert row["mean"] == pytest.approx(1 / 9)
        assert row["p/(2-p)"] == pytest.approx(0.01 / 1.99)


def test_table_5_divides_by_the_paper(monkeypatch):
    sizes = {"values": 4, "moments": 8, "index": 2, "gradient": 4}
    monkeypatch.setattr(tables, "allocated_bytes", lambda shapes, level: {part: mib * 2**20 for part, mib in sizes.items()})
    table = tables.table_5(["qwen2.5-0.5b"])
    assert (table["moments + index MiB"] == 10).all()
    assert (table["of paper"] * table["paper MiB"]).tolist() == pytest.approx([10] * len(table))
    assert (table["moments MiB"] == 8).all()


def test_the_numbers_of_a_column_have_the_same_decimals():
    table = pd.DataFrame(
        {
            "mean": [0.9, 0.8125, 0.0123456],
            "lr": [1e-4, 0.03, 1.0],
            "size": [1234.5, 0.25, float("nan")],
            "wide": [1e-6, 2.0, 0.5],
            "runs": [5.0, 20.0, 1.0],
        }
    )
    assert texts(table).to_dict("list") == {
        "mean": ["0.9000", "0.8125", "0.0123"],
        "lr": ["0.0001", "0.03", "1"],
        "size": ["1,234.50", "0.25", ""],
        "wide": ["1e-06", "2", "0.5"],
        "runs": ["5", "20", "1"],
    }


def test_markdown_is_a_table():
    text = markdown(pd.DataFrame({"a": [1, 15_436_967], "b": [0.5, float("nan")], "c": ["x|y", None]}))
    assert text.splitlines() == ["| a | b | c |", "| --- | --- | --- |", "| 1 | 0.5 | x\\|y |", "| 15,436,967 |  |  |"]
