"""Figures printed in the paper: Tables 1, 2, 3 and 5. Table 4 is conf/recipe/."""

# Table 1: what an experiment trains a model on if the command line names only the model. `tiny` is the embedded model.
TASK_OF = {"qwen2.5-1.5b": "math", "qwen2.5-0.5b": "gsm8k", "qwen2.5-0.5b-instruct": "alphabet_sort", "tiny": "arithmetic"}

MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b")
LEVELS = (0, 99, 99.5, 99.9, 99.95, 99.99, 99.999)  # sparsity in percent, in Tables 2 and 5 and Figure 3

# Table 2, by level: learning rates, and active parameters as the paper rounds them.
LEARNING_RATES = {
    "qwen2.5-0.5b": (1e-6, 1e-4, 1e-4, 1e-3, 1e-3, 1e-3, 5e-3),
    "qwen2.5-1.5b": (1e-6, 1e-4, 1e-4, 1e-3, 1e-3, 4e-3, 1e-2),
}
ACTIVE = {
    "qwen2.5-0.5b": ("~0.5B", "~4.9M", "~2.4M", "~490K", "~247K", "~49K", "~4K"),
    "qwen2.5-1.5b": ("~1.5B", "~15M", "~7.7M", "~1.5M", "~770K", "~150K", "~15K"),
}

# Table 3: mean Jaccard similarity of five masks, by sparsity in percent.
JACCARD = {
    "qwen2.5-0.5b": {99: "0.005", 99.9: "0.0005", 99.99: "0.000055"},
    "qwen2.5-1.5b": {99: "0.005031", 99.9: "0.000498", 99.99: "0.0000528"},
}

# Table 5, by level: optimizer memory in MiB. 16 bytes per active entry (two fp32 moments and an int64 index), 8 for full training.
OPTIMIZER_MIB = {
    "qwen2.5-0.5b": (3769.5, 75.6, 37.86, 7.67, 3.9, 0.9, 0.2),
    "qwen2.5-1.5b": (11776, 235.8, 118, 23.8, 12, 2.5, 0.39),
}
