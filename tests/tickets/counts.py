"""Exact numbers of active entries of the paper's models (paper, section 2.2 and appendix C)."""

# Model -> sparsity in percent -> sum of the per-tensor floors, and number of tensors without an active entry.
COUNTS = {
    "qwen2.5-0.5b": {
        99: (4_940_162, 0),
        99.5: (2_470_021, 48),
        99.9: (493_878, 121),
        99.95: (246_939, 121),
        99.99: (49_301, 121),
        99.999: (4_889, 121),
    },
    "qwen2.5-1.5b": {
        99: (15_436_967, 0),
        99.5: (7_718_399, 0),
        99.9: (1_543_578, 56),
        99.95: (771_690, 141),
        99.99: (154_265, 141),
        99.999: (15_297, 141),
    },
}

# Model -> entries, and tensors.
TOTALS = {"qwen2.5-0.5b": (494_032_768, 290), "qwen2.5-1.5b": (1_543_714_304, 338)}

# Model -> entries of one decoder layer.
ONE_LAYER = {"qwen2.5-0.5b": 14_912_384, "qwen2.5-1.5b": 46_797_824}
