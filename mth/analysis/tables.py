"""Tables 2, 3 and 5 at the real Qwen2.5 shapes, the paper's figures beside ours. No weights, no runs: architectures and seeds only."""

import math
from collections.abc import Sequence

import pandas as pd

from mth.analysis.memory import MIB, PAPER_MIB, PARTS, allocated, optimizer_mib
from mth.analysis.needs import cells_of
from mth.analysis.overlap import Mask, expected_jaccard, overlap
from mth.config import LR_TABLES, Init, MaskConfig, ModelConfig
from mth.policy import parameter_shapes
from mth.tickets.sampling import Shapes, active_counts

MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b")
# As printed in the paper: Table 2 (active parameters, rounded there) and Table 3 (mean Jaccard similarity of five masks).
PAPER_ACTIVE = {
    "qwen2.5-0.5b": ("~0.5B", "~4.9M", "~2.4M", "~490K", "~247K", "~49K", "~4K"),
    "qwen2.5-1.5b": ("~1.5B", "~15M", "~7.7M", "~1.5M", "~770K", "~150K", "~15K"),
}
PAPER_RATE = {
    "qwen2.5-0.5b": (1e-6, 1e-4, 1e-4, 1e-3, 1e-3, 1e-3, 5e-3),
    "qwen2.5-1.5b": (1e-6, 1e-4, 1e-4, 1e-3, 1e-3, 4e-3, 1e-2),
}
PAPER_JACCARD = {
    "qwen2.5-0.5b": {99: "0.005", 99.9: "0.0005", 99.99: "0.000055"},
    "qwen2.5-1.5b": {99: "0.005031", 99.9: "0.000498", 99.99: "0.0000528"},
}


def real_shapes(model: str) -> Shapes:
    """Shapes of a published model, from the architecture that the package ships."""
    return parameter_shapes(ModelConfig(name=model, path=model, init=Init.random))


def table_2(models: Sequence[str] = MODELS) -> pd.DataFrame:
    """Active parameters and learning rates by sparsity."""
    rows = []
    for model in models:
        shapes = real_shapes(model)
        levels = sorted(float(level) for level in LR_TABLES[model])
        for level, paper, rate in zip(levels, PAPER_ACTIVE[model], PAPER_RATE[model], strict=True):
            counts = active_counts(shapes, level, MaskConfig())
            rows.append(
                {
                    "model": model,
                    "sparsity %": level,
                    "active, paper": paper,
                    "active": sum(counts.values()),
                    "tensors with none": sum(count == 0 for count in counts.values()),
                    "of tensors": len(counts),
                    "learning rate, paper": rate,
                    "learning rate": LR_TABLES[model][f"{level:g}"],
                }
            )
    return pd.DataFrame(rows)


def overlap_tables(model: str, shapes: Shapes, levels: dict[float, list[int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean Jaccard similarity of all pairs of random masks, in total and per tensor; levels: sparsity -> mask seeds."""
    rows, tensors = [], []
    for percent, seeds in levels.items():
        found = overlap(shapes, [Mask(seed, percent) for seed in seeds])
        pairs = found.pairs()
        for name in found.tensors:
            within = found.pairs(name)  # NaN where the level leaves this tensor no entry
            row = {"model": model, "sparsity %": percent, "tensor": name, "entries": math.prod(shapes[name])}
            tensors.append(
                row | {"mean": within.mean(), "smallest": within.min(), "largest": within.max(), "p/(2-p)": expected_jaccard(percent)}
            )
        row = {"model": model, "sparsity %": percent, "masks": len(seeds), "pairs": pairs.size}
        figures = {"mean": pairs.mean(), "smallest": pairs.min(), "largest": pairs.max(), "p/(2-p)": expected_jaccard(percent)}
        paper = PAPER_JACCARD.get(model, {}).get(percent, "")
        rows.append(row | ({"paper": paper} if model in PAPER_JACCARD else {}) | {key: float(value) for key, value in figures.items()})
    return pd.DataFrame(rows), pd.DataFrame(tensors)


def table_3(models: Sequence[str] = MODELS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Overlap of the masks that conf/experiment/table3_overlap.yaml names, in total and per tensor."""
    levels: dict[float, list[int]] = {}
    for config in cells_of(["experiment=table3_overlap"]):
        levels.setdefault(config.sparsity.percent, []).append(config.mask_seed)
    total, tensors = zip(*(overlap_tables(model, real_shapes(model), levels) for model in models), strict=True)
    return pd.concat(total, ignore_index=True), pd.concat(tensors, ignore_index=True)


def table_5(models: Sequence[str] = MODELS) -> pd.DataFrame:
    """MiB allocated per part at the levels of conf/experiment/table5_memory.yaml. Up to 6 GB and a minute or two for the 1.5B model."""
    levels = sorted({config.sparsity.percent for config in cells_of(["experiment=table5_memory"])})
    rows = []
    for model in models:
        shapes = real_shapes(model)
        for level in levels:
            parts = allocated(shapes, level)
            paper, ours = PAPER_MIB[model][level], optimizer_mib(parts)
            row = {"model": model, "sparsity %": level, "paper MiB": paper, "moments + index MiB": round(ours, 2), "of paper": ours / paper}
            rows.append(row | {f"{part} MiB": round(parts[part] / MIB, 2) for part in PARTS})
    return pd.DataFrame(rows)
