"""Seconds and peak memory of the overlap of twenty 99 % masks of Qwen2.5-1.5B: 190 pairs, 15.4 million entries each, from seeds alone.

python benchmarks/overlap.py [number of masks]
"""

import resource
import sys
import time

from mth.analysis.overlap import Mask, expected_jaccard, overlap
from mth.config.cells import cells_of
from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.models.shapes import parameter_shapes


def main(count: int) -> None:
    shapes = parameter_shapes(ModelConfig(name="qwen2.5-1.5b", path="none", init=Init.random))
    seeds = [cell.config.mask_seed for cell in cells_of(["experiment=fig1_masks_1.5b", "sparsity.percent=99"])][:count]
    start = time.perf_counter()
    result = overlap(shapes, [Mask(seed) for seed in seeds])
    seconds = time.perf_counter() - start
    pairs = result.pairs()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(seeds)} masks, {pairs.size} pairs, {result.shared.sum(0)[0, 0]:,} entries each: {seconds:.1f} s, peak {peak:.2f} GiB")
    print(f"Jaccard mean {pairs.mean():.6f}, range {pairs.min():.6f} to {pairs.max():.6f}, expected {expected_jaccard(99):.6f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
