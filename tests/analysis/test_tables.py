"""The paper's tables at the real shapes."""

import pytest

from mth.analysis.tables import table_2, table_3


def test_tables_2_and_3_at_the_real_shapes():
    table = table_2().set_index(["model", "sparsity %"])
    assert table.loc[("qwen2.5-1.5b", 99), "active"] == 15_436_967
    assert table.loc[("qwen2.5-0.5b", 99.9), "tensors with none"] == 121
    assert (table["learning rate"] == table["learning rate, paper"]).all()
    overlap, tensors = table_3(["qwen2.5-0.5b"])
    assert len(tensors) == 3 * 290
    largest = tensors[(tensors["sparsity %"] == 99) & (tensors["tensor"] == "model.embed_tokens.weight")].iloc[0]
    assert largest["mean"] == pytest.approx(largest["p/(2-p)"], rel=0.02)
    assert overlap["pairs"].tolist() == [10, 10, 10]
    assert overlap["mean"].iloc[0] == pytest.approx(overlap["p/(2-p)"].iloc[0], rel=0.01)
    assert overlap["paper"].tolist() == ["0.005", "0.0005", "0.000055"]
