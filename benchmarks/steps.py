"""Time and memory of one optimizer step: mth against its alternatives, side by side.

python benchmarks/steps.py [--model 0.5b-8] [--tokens 512 2048] [--sparsity 99 99.9 99.99] [--rounds 7]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from interleave import RESULTS, measure, report, summarize

HERE = Path(__file__).parent
LABELS = {
    "floor": "floor: forward, backward to the inputs, no weight gradient",
    "ticket": "mth",
    "ticket-dense": "mth, dense weight gradients",
    "lora": "LoRA (peft)",
    "shira": "SHiRA, random mask (peft)",
    "paper": "paper: dense gradients, sparse AdamW, int64",
    "masked": "mask times gradient, full AdamW",
    "full": "full AdamW, fused",
}
BY_SPARSITY = ("ticket", "ticket-dense", "lora", "shira")  # methods whose cost depends on the sparsity
AT_ONCE = 4  # methods that run side by side
EXPLANATION = """Each method is a process. Four at a time take one step each in turn, with a step of the floor before and after. A ratio is the
time of a step over the mean of these two floors; the table has its median and its spread over rounds. Memory is the peak of the process above
the loaded model. LoRA and SHiRA adapt the linear layers with as many trainable parameters as the ticket, and leave embedding, biases and
norms unchanged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="0.5b-8", help="0.5b-8 (148 M parameters of the 0.5B shape), 0.5b or 1.5b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--sparsity", nargs="+", default=["99", "99.9", "99.99"])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    tables = {}
    for tokens in arguments.tokens:
        for percent in arguments.sparsity:
            programs = {
                LABELS[method]: [str(HERE / "methods.py"), method, arguments.model, percent, str(tokens)]
                for method in LABELS
                if method in BY_SPARSITY or percent == arguments.sparsity[0] or method == "floor"
            }
            table = in_parts(programs, arguments.rounds).rename(columns={f"times {LABELS['floor']}": "times floor"})
            tables[f"{tokens} tokens, {percent} % sparsity"] = table
    name = f"steps-{arguments.model}"
    report(name, f"One optimizer step, {arguments.model}", tables, EXPLANATION)
    draw(tables, RESULTS / f"{name}.png")


def in_parts(programs: dict[str, list[str]], rounds: int) -> pd.DataFrame:
    """Measure AT_ONCE methods at a time, each part with its own floor. All at once would need too much memory for a small machine."""
    floor, *others = programs
    tables = []
    for start in range(0, len(others), AT_ONCE):
        part = {name: programs[name] for name in (floor, *others[start : start + AT_ONCE])}
        tables.append(summarize(measure(part, rounds, floor), floor))
    return pd.concat(tables).drop_duplicates("method")  # keeps the floor of the first part only


def draw(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Draw time against memory, one panel per setting."""
    columns = 3
    figure, axes = plt.subplots(
        -(-len(tables) // columns), columns, figsize=(13, 4 * -(-len(tables) // columns)), layout="constrained", squeeze=False
    )
    colors = ["#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#999999"]
    shapes = "*osD^vPX"
    style = dict(zip(LABELS.values(), zip(colors, shapes, strict=True), strict=True))
    for panel, (heading, table) in zip(axes.flat, tables.items(), strict=False):
        for row in table.to_dict("records"):
            color, shape = style[row["method"]]
            panel.scatter(row["times floor"], row["MiB above the model"], color=color, marker=shape, s=70, label=row["method"])
        panel.set(title=heading, xlabel="seconds a step, times the floor", ylabel="peak MiB above the model")
        panel.set_ylim(0, 1.1 * table["MiB above the model"].max())
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(tables) :]:
        panel.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
