"""Tables 2, 3 and 5 at the real Qwen2.5 shapes, beside the paper's numbers. Needs architectures and seeds, no weights and no runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mth.analysis.memory import MIB, PARTS, allocated_bytes, optimizer_mib
from mth.analysis.overlap import Mask, expected_jaccard, overlap
from mth.config import paper
from mth.config.cells import cells_of
from mth.config.choices import Init
from mth.config.learning_rates import table_lr
from mth.config.schema import MaskConfig, ModelConfig
from mth.models.shapes import parameter_shapes
from mth.tickets.indices import Shapes
from mth.tickets.masks import active_counts


def real_shapes(model: str) -> Shapes:
    """Shapes of a published model, from the architecture that the package ships."""
    return parameter_shapes(ModelConfig(name=model, path=model, init=Init.random))


def table_2(models: Sequence[str] = paper.MODELS) -> pd.DataFrame:
    """Active parameters and learning rates by sparsity."""
    rows = []
    for model in models:
        shapes = real_shapes(model)
        for level, active, rate in zip(paper.LEVELS, paper.ACTIVE[model], paper.LEARNING_RATES[model], strict=True):
            counts = active_counts(shapes, level, MaskConfig())
            rows.append(
                {
                    "model": model,
                    "sparsity %": float(level),
                    "active, paper": active,
                    "active": sum(counts.values()),
                    "tensors with none": sum(count == 0 for count in counts.values()),
                    "of tensors": len(counts),
                    "learning rate, paper": rate,
                    "learning rate": table_lr(model, level),
                }
            )
    return pd.DataFrame(rows)


def overlap_tables(model: str, shapes: Shapes, levels: Mapping[float, Sequence[int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean Jaccard similarity of all pairs of random masks, in total and per tensor. levels: sparsity in percent -> mask seeds."""
    rows, tensors = [], []
    for percent, seeds in levels.items():
        found = overlap(shapes, [Mask(seed, percent) for seed in seeds])
        level = {"model": model, "sparsity %": percent}
        for name in found.tensors:
            values = _statistics(found.pairs(name), percent)  # NaN where this sparsity leaves the tensor no entry
            tensors.append(level | {"tensor": name, "entries": math.prod(shapes[name])} | values)
        pairs = found.pairs()
        printed = {"paper": paper.JACCARD[model].get(percent, "")} if model in paper.JACCARD else {}
        rows.append(level | {"masks": len(seeds), "pairs": pairs.size} | printed | _statistics(pairs, percent))
    return pd.DataFrame(rows), pd.DataFrame(tensors)


def _statistics(pairs: np.ndarray, percent: float) -> dict[str, float]:
    """Columns of the overlap tables. pairs: Jaccard similarity of each pair of masks."""
    values = {"mean": pairs.mean(), "smallest": pairs.min(), "largest": pairs.max(), "p/(2-p)": expected_jaccard(percent)}
    return {key: float(value) for key, value in values.items()}


def table_3(models: Sequence[str] = paper.MODELS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Overlap of the masks that conf/experiment/table3_overlap.yaml names, in total and per tensor."""
    levels: dict[float, list[int]] = {}
    for cell in cells_of(["experiment=table3_overlap"]):
        levels.setdefault(cell.config.sparsity.percent, []).append(cell.config.mask_seed)
    total, tensors = zip(*(overlap_tables(model, real_shapes(model), levels) for model in models), strict=True)
    return pd.concat(total, ignore_index=True), pd.concat(tensors, ignore_index=True)


def table_5(models: Sequence[str] = paper.MODELS) -> pd.DataFrame:
    """MiB allocated per part at the levels of conf/experiment/table5_memory.yaml. Takes up to 6 GB and a minute or two for the 1.5B model."""
    levels = sorted({cell.config.sparsity.percent for cell in cells_of(["experiment=table5_memory"])})
    rows = []
    for model in models:
        shapes, printed = real_shapes(model), dict(zip(paper.LEVELS, paper.OPTIMIZER_MIB[model], strict=True))
        for level in levels:
            parts = allocated_bytes(shapes, level)
            theirs, ours = printed[level], optimizer_mib(parts)
            row = {
                "model": model,
                "sparsity %": level,
                "paper MiB": theirs,
                "moments + index MiB": round(ours, 2),
                "of paper": ours / theirs,
            }
            rows.append(row | {f"{part} MiB": round(parts[part] / MIB, 2) for part in PARTS})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper in a report. make: returns it, and a further table per tensor or None."""

    slug: str
    title: str
    caption: str
    make: Callable[[], tuple[pd.DataFrame, pd.DataFrame | None]]


PAPER_TABLES = (
    PaperTable(
        "table2",
        "Active parameters and learning rates (Table 2)",
        "Exact counts at the real shapes; the paper rounds them.",
        lambda: (table_2(), None),
    ),
    PaperTable(
        "table3",
        "Overlap of random masks (Table 3)",
        "All pairs of the five masks at the real shapes, counted exactly, from seeds alone; per tensor in table3_tensors.csv.",
        table_3,
    ),
    PaperTable(
        "table5",
        "Optimizer memory (Table 5)",
        "Bytes really allocated at the real shapes. The paper counts two fp32 moments and an int64 index, and 8 bytes per parameter for full "
        "training; ours has int32 indices. values: the fp32 master copy of the active entries; the frozen weights need none.",
        lambda: (table_5(), None),
    ),
)
