"""A 99 % ticket of the embedded model in TRL's GRPOTrainer, through `mth.attach`, beside mth's own trainer: reward, seconds, memory.

python benchmarks/library.py [--steps 30] [--sparsity 99]

Same model, mask, task, batch, group size, temperature, optimizer and clipping. One program after the other; each is a process of its own, whose
CPU seconds and memory include start and imports. Rewards are those of `python -m mth.evaluate` on held-out problems.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from interleave import report

from mth.runs.folder import RunFolder

TASK = "arithmetic"


def train_in_trl(run: Path, out: Path) -> None:
    """Train what the configuration of a run asks for in TRL's trainer, and save the merged model."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    import mth
    from mth.models.save import save_model
    from mth.models.shapes import model_source
    from mth.models.tokenizer import load_tokenizer
    from mth.tasks import load_tasks

    config = RunFolder(run).config()
    task, _ = load_tasks(config)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_source(config.model), dtype=torch.float32), load_tokenizer(config.model)
    ticket = mth.attach(model, sparsity=config.sparsity.percent, mask_seed=config.mask_seed)
    settings, rollout = config.optimizer, config.rollout
    adamw = {"lr": config.lr.value, "betas": (settings.beta1, settings.beta2), "eps": settings.eps, "weight_decay": settings.weight_decay}
    episodes = {episode.uid: episode for episode in task.train}

    def reward(completions: list[Any], uid: list[str], **columns: Any) -> list[float]:
        replies = [completion[0]["content"] for completion in completions]
        return [score["reward"] for score in task.scores([(episodes[i], [reply]) for i, reply in zip(uid, replies, strict=True)])]

    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(out),
            max_steps=config.train.steps,
            per_device_train_batch_size=config.train.batch_size,
            num_generations=rollout.group_size,
            max_completion_length=rollout.max_tokens,
            temperature=rollout.temperature,
            beta=0.0,
            loss_type="dapo",  # divides by the tokens of the batch, as mth does
            max_grad_norm=settings.max_grad_norm,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": e.turns[0]}], "uid": e.uid} for e in task.train]),
        processing_class=tokenizer,
        optimizers=(ticket.optimizer(torch.optim.AdamW, **adamw), None),
    )
    trainer.train()
    (out / "ticket.txt").write_text(repr(ticket))
    ticket.merge()
    save_model(model, tokenizer, out / "model")


def start(*arguments: str | Path) -> tuple[float, float]:
    """Run a Python program. Returns its CPU seconds, which other programs on the machine disturb least, and its peak resident MiB."""
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, arguments
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def held_out(*arguments: str) -> str:
    """Mean reward on held-out problems, with its standard error."""
    command = [sys.executable, "-m", "mth.evaluate", *arguments, f"task={TASK}", "eval.samples=256", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    mean, error = (found[f"eval/{TASK}/{key}"] for key in ("reward", "reward_error"))
    return f"{mean:.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sparsity", type=float, default=99.0)
    parser.add_argument("--trl", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trl:
        train_in_trl(*arguments.trl)
        return
    with tempfile.TemporaryDirectory() as name:
        run, out = Path(name, "run"), Path(name, "trl")
        out.mkdir()
        settings = [
            f"task={TASK}",
            f"sparsity={arguments.sparsity:g}",
            f"train.steps={arguments.steps}",
            "eval.every=1000",
            "eval.samples=8",
        ]
        rows: list[dict[str, Any]] = [{"trainer": "none: the base model", "held-out reward": held_out()}]
        for trainer, command, model in (
            ("mth", ["-m", "mth.train", *settings, "tracker=none", f"run_dir={run}"], f"checkpoint={run}"),
            ("TRL GRPOTrainer with mth.attach", [__file__, "--trl", run, out], f"model.path={out / 'model'}"),
        ):
            seconds, memory = start(*command)
            rows.append(
                {"trainer": trainer, "held-out reward": held_out(model), "CPU seconds": f"{seconds:.0f}", "peak MiB": f"{memory:,.0f}"}
            )
        ticket = (out / "ticket.txt").read_text()
    text = f"{arguments.steps} steps of GRPO on {TASK}. {ticket}. CPU seconds and memory are of the whole process."
    report("library", "A ticket in TRL's trainer and in mth's own", {"": pd.DataFrame(rows).fillna("")}, text)


if __name__ == "__main__":
    main()
