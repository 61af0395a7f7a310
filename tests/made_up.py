"""Made-up studies: runs whose numbers are chosen, so that the right answers are known. They are written as a frame, which a report reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mth.analysis.aggregate import tidy_frame
from mth.analysis.collection import Run
from mth.analysis.frame import write_frame
from mth.config.compose import compose
from mth.config.identity import identity
from mth.config.recipes import load_run
from mth.config.schema import Config, LrConfig, MaskConfig, SparsityConfig
from mth.runs.journal import Entry
from mth.runs.metrics import PASS_AT_1, eval_metric
from mth.runs.summary import Summary

PROMPTS = 100
STEPS = 20


def config_of(*arguments: str) -> Config:
    """A configuration from overrides."""
    typed = [f"train.steps={STEPS}", "tracker=none", *arguments]
    return load_run(compose(typed), typed)


def made_run(base: Config, share: dict[str, float], percent: float = 99.0, **varied) -> Run:
    """A run that solves half of the prompts of each task before training and `share` of them afterwards; the first prompts are solved.

    varied: mask_seed, train_seed, lr, family, budget, status, reward (the last one on training prompts).
    """
    mask = MaskConfig(family=varied["family"], budget=varied["budget"]) if "family" in varied else base.mask
    config = replace(
        base,
        sparsity=SparsityConfig(percent),
        mask=mask,
        mask_seed=varied.get("mask_seed", 0),
        seed=replace(base.seed, train=varied.get("train_seed", 42)),
        lr=LrConfig(value=varied.get("lr", 1e-3)),
    )
    entries = []
    for step in range(0, STEPS + 1, STEPS // 2):
        rewards = {
            task: (np.arange(PROMPTS) < round(PROMPTS * (0.5 + (after - 0.5) * step / STEPS))).astype(float).tolist()
            for task, after in share.items()
        }
        metrics = {eval_metric(task, PASS_AT_1): float(np.mean(values)) for task, values in rewards.items()}
        entries.append(Entry(step, 0, metrics | {"reward/mean": varied.get("reward", 0.5)}, rewards))
    seeds = f"m{config.mask_seed}-t{config.seed.train}"
    name = f"{config.model.name}-{config.task.name}-s{percent:g}-{config.mask.family}-{seeds}-lr{config.lr.value:g}"
    status = varied.get("status", "finished")
    return Run(name, config, identity(config), status, "" if status == "finished" else "it fell", "made-up", Summary(), entries)


def write_study(folder: Path, runs: list[Run]) -> Path:
    """The runs as a frame; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_frame(runs, tidy_frame(runs), folder)
    return folder


def several_tasks(model: str, tasks: list[str], trained: list[str], *arguments: str) -> list[Run]:
    """A study of one model on several tasks: five seeds of full training, twenty masks at 99 %, three at 99.99 %, one at other rates, two layers.

    At 99 % all but one of the masks come within 0.01 of full training; 99.99 % gains little and loses half of what it did not train.
    """
    runs = []
    for own in trained:
        base = config_of(f"model={model}", f"task={own}", f"eval.tasks=[{','.join(tasks)}]", f"eval.samples={PROMPTS}", *arguments)
        others = [task for task in tasks if task != own]

        def ends(gain: float, change: float, own: str = own, others: list[str] = others) -> dict[str, float]:
            return {own: 0.5 + gain} | {task: 0.5 + change - 0.02 * number for number, task in enumerate(others)}

        for number, seed in enumerate((42, 1, 2, 3, 4)):
            runs.append(made_run(base, ends(0.4 + 0.01 * (number - 2), -0.02), 0.0, train_seed=seed, lr=1e-5))
        for number in range(20):
            gain = 0.25 if number == 7 else 0.39 + 0.01 * (number % 3)
            runs.append(made_run(base, ends(gain, -0.03), 99.0, mask_seed=number, lr=1e-3))
        runs += [made_run(base, ends(0.06, -0.25), 99.99, mask_seed=seed, lr=1e-2) for seed in range(3)]
        runs.append(made_run(base, ends(0.1, -0.01), 0.0, lr=3e-6, reward=0.2))
        runs.append(made_run(base, ends(0.2, -0.01), 99.0, lr=3e-4, reward=0.3))
        runs.append(made_run(base, ends(-0.5, -0.5), 99.99, lr=3e-2, reward=0.0, status="collapsed"))
        for family in ("first_layer", "last_layer"):
            runs.append(made_run(base, ends(0.3, -0.05), 99.0, family=family, budget="matched"))
    return runs
