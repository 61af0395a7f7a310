"""The loop. Read `train` from top to bottom."""

from pathlib import Path

import torch

from mth.config.schema import Config
from mth.foundations.progress import Bar
from mth.foundations.seeds import derive_seed
from mth.foundations.signals import Requests
from mth.runs.contents import keep_contents
from mth.runs.journal import is_due
from mth.runs.lock import lock_run
from mth.runs.metrics import PEAK_MEMORY
from mth.runs.summary import Summary
from mth.training.evaluation import Evaluation, evaluate, evaluate_base
from mth.training.learner import Learner
from mth.training.metrics import peak_memory, timed
from mth.training.recorder import recording
from mth.training.setup import assemble
from mth.training.shown import show_step
from mth.training.step import train_step

STEP_LINES_EVERY_S = 10.0  # where output is no terminal; an evaluated step always has a line


def train(
    config: Config, run_dir: Path, root: Path, requests: Requests | None = None, grid: Path | None = None, patience_s: float = 0.0
) -> Summary:
    """Train a run in `run_dir`, from its newest checkpoint if it has one. Returns its summary, which is also in `summary.json`.

    root: folder of all runs, where the default MLflow store is. requests: read at every step boundary. grid: folder of the grid that the run
    belongs to; cells of a grid share the evaluation of the base model. patience_s: how long to wait for the folder's lock, in seconds.
    """
    requests = requests or Requests()
    torch.manual_seed(derive_seed("torch", config.seed.train))  # mth draws nothing from it, but a model might
    with lock_run(run_dir, config, patience_s) as folder, assemble(config) as parts:
        keep_contents(run_dir, config)
        run = Learner(parts, folder)
        run.announce()
        with recording(run, root, grid) as recorder:
            if run.progress.step < 0:
                with requests.interruptible(lambda: None):  # there is nothing to save yet
                    base = timed(lambda: evaluate_base(parts.player, parts.eval_tasks, config, grid, parts.policy.tokenizer))
                recorder.log(0, {}, base)
            if run.progress.unlogged is not None:  # stopped between a step and its evaluation
                recorder.log(run.progress.step, run.progress.unlogged, evaluate_trained(run, requests))
            recorder.look_back()
            done, steps = run.progress.step, config.train.steps
            with Bar(desc="train", unit="steps", initial=done, total=steps, every_s=STEP_LINES_EVERY_S) as bar:
                show_step(bar, done, {}, recorder.passes)
                for step in range(done + 1, steps + 1):
                    if recorder.stopped:
                        break
                    if requests.stop:
                        recorder.status = "interrupted"
                        break
                    metrics = train_step(run, step)
                    last = recorder.watch(metrics, step) or step == steps
                    evaluation = evaluate_trained(run, requests) if last or is_due(step, config.eval.every) else None
                    recorder.log(step, metrics, evaluation)
                    show_step(bar, step, metrics, recorder.passes)
                    if requests.save or is_due(step, config.checkpoints.every):
                        requests.save = False
                        run.save()
    return recorder.summary


def evaluate_trained(run: Learner, requests: Requests) -> Evaluation:
    """Evaluate the newest values. The metrics hold the peak memory until then. A signal interrupts it: the step is saved without it."""
    parts = run.parts
    with requests.interruptible(run.save):
        run.sync()
        evaluation = timed(lambda: evaluate(parts.player, parts.eval_tasks, parts.config, parts.policy.tokenizer))
    evaluation.metrics[PEAK_MEMORY] = float(peak_memory(parts.policy.model.device))
    return evaluation
