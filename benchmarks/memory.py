"""Peak memory that `python -m mth.grid plan` predicts, against that of the run: two steps of real runs, random weights in real shapes.

python benchmarks/memory.py [name ...]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from interleave import report

from mth.config.cells import cells_of
from mth.grid.memory import facts_of_models, memory_estimate

SHORT = ["train.steps=2", "eval.samples=16", "eval.every=0", "tracker=none"]
# The embedded model's tokenizer keeps prompts short, so that the sizes below decide.
HALF = [
    "model=qwen2.5-0.5b",
    "model.device=cpu",
    "model.init=random",
    "model.path=random",
    "model.tokenizer=mth/assets/tiny",
    "task=arithmetic",
    *SHORT,
]
HALF += ["train.batch_size=24", "rollout.group_size=8", "rollout.max_tokens=64", "eval.max_tokens=16", "rollout.batch_size=32", "lr=1e-6"]
# Rows of four replies have about 280 tokens: three of them fill a micro-batch (seven where it is checkpointed), of which the prediction speaks.
HALF += ["train.micro_batch_tokens=860"]
RUNS = {
    "tiny, 99 %": ["task=arithmetic", *SHORT],
    "tiny, full": ["task=arithmetic", "sparsity=0", *SHORT],
    "tiny, Alphabet Sort": ["task=alphabet_sort", *SHORT],
    "0.5B fp32, 99 %": [*HALF, "model.dtype=float32"],
    "0.5B fp32, 99.99 %": [*HALF, "model.dtype=float32", "sparsity=99.99"],
    "0.5B fp32, 99 %, dense gradients": [*HALF, "model.dtype=float32", "optimizer.weight_gradient=dense"],
    "0.5B fp32, 99 %, checkpointing": [
        *HALF,
        "train.micro_batch_tokens=2000",
        "model.dtype=float32",
        "model.activation_checkpointing=true",
    ],
    "0.5B bf16, 99 %": [*HALF, "model.dtype=bfloat16"],
    "0.5B bf16, full": [*HALF, "model.dtype=bfloat16", "sparsity=0"],
}


def main(names: list[str]) -> None:
    lines = []
    for name in names or list(RUNS):
        (cell,) = cells_of(RUNS[name])
        parts = memory_estimate(cell.config, facts_of_models(cell.config.model, {}))
        with tempfile.TemporaryDirectory() as folder:
            run = [sys.executable, "-m", "mth.train", *RUNS[name], f"run_dir={folder}/run"]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
            measured = json.loads((Path(folder) / "run" / "summary.json").read_text())["peak_memory_bytes"]
        predicted = sum(parts.values())
        line = {
            "run": name,
            "predicted GiB": f"{predicted / 2**30:.2f}",
            "measured GiB": f"{measured / 2**30:.2f}",
            "ratio": f"{predicted / measured:.2f}",
        }
        lines.append(line | {part: f"{size / 2**20:,.0f}" for part, size in parts.items()})
        print(line, flush=True)
    report(
        "memory",
        "Predicted and measured peak memory",
        {"": pd.DataFrame(lines)},
        "Parts of the prediction in MiB. Resident memory of the process.",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
