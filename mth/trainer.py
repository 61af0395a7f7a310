"""The loop: generate, score, update, synchronise, evaluate, save. Read `train` from top to bottom."""

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mth.algorithm.advantages import group_advantages, no_signal
from mth.algorithm.collapse import collapse_reason
from mth.batches import collate, pair_cost
from mth.checkpoint import checkpoint_path, latest_checkpoint, prune_checkpoints, restore_training, save_checkpoint
from mth.config import Collect, Config, PromptOrder, check_context
from mth.errors import EngineError, UserError
from mth.evaluation import evaluate, evaluate_base, is_right, mean
from mth.files import write_json
from mth.gradients import Collector
from mth.policy import draw_ticket, load_policy
from mth.rollout import build_engine
from mth.rollout.conversation import Rollout, Script, play
from mth.runs import claim, note
from mth.seeds import derive_seed, permutation
from mth.signals import Requests
from mth.tasks import load_tasks
from mth.tasks.base import Episode, Task
from mth.tickets.sampled import choose_sampled
from mth.tickets.ticket import Ticket
from mth.tracking import MLFLOW_STATUS, Journal, Tracker, run_tags
from mth.update import build_optimizer, update


def train(
    config: Config, run_dir: Path, root: Path, requests: Requests | None = None, grid: Path | None = None, patience_s: float = 0.0
) -> dict[str, Any]:
    """Run (or continue) one training run in `run_dir` and return its summary, which is also written to `summary.json`.

    root: folder of all runs, where the default MLflow store is. requests: read at every step boundary. grid: folder of the grid that the run
    is a cell of; cells of a grid share the evaluation of the base model. patience_s: how long to wait for the folder's lock.
    """
    requests = requests or Requests()
    claimed = claim(run_dir, config, patience_s)
    torch.manual_seed(derive_seed("torch", config.seed.train))  # nothing here draws from it; a model with dropout would
    task, eval_tasks = load_tasks(config)
    check_rows(task, config)
    policy = load_policy(config.model)
    check_context(config, policy.model.config.max_position_embeddings)
    ticket = draw_ticket(policy, config)
    ticket.sampled, unsampled = choose_sampled(policy.model, ticket, config.optimizer)
    for line in unsampled:
        tqdm.write(line)
    base_values = ticket.values.detach().clone() if config.algorithm.kl_coef > 0 else None
    optimizer = build_optimizer(ticket, config.optimizer, config.lr.value or 0.0)
    lagged = ticket.values.detach().clone() if config.algorithm.lag else None  # values before the last update: what a lagged engine uses
    engine = build_engine(policy, ticket, config.rollout)
    script = Script(policy.tokenizer)
    sharing = pair_cost(policy.model)

    done = -1  # last step that is in the journal
    unlogged: dict[str, float] | None = None  # metrics of the step after it, trained but for its evaluation
    checkpoint, warnings = latest_checkpoint(run_dir)
    for line in warnings:
        tqdm.write(f"warning: {line}")
    if checkpoint is not None:
        done, unlogged = restore_training(checkpoint, ticket, optimizer, config)
        lagged = None if lagged is None else checkpoint.tensors["lagged"].to(lagged.device)
    trained = done if unlogged is None else done + 1
    collector = Collector(run_dir, config, ticket, trained) if config.spectrum.mode is not Collect.none else None
    if collector is not None:
        tqdm.write(collector.announcement)
    facts = {"active_parameters": ticket.active_parameters, "total_parameters": ticket.total_parameters, "mask_sha256": ticket.mask_sha256}
    note(run_dir, facts=facts)
    tracker = Tracker(config, run_dir, root, done, facts, run_tags(run_dir, root, grid))
    start = "start" if trained < 0 else f"continuing after step {trained}"
    tqdm.write(
        f"{config.label}: {ticket.active_parameters:,} of {ticket.total_parameters:,} parameters, mask {ticket.mask_sha256[:12]}, {start}"
    )

    def save(step: int) -> None:
        extra = {} if lagged is None else {"lagged": lagged}
        save_checkpoint(checkpoint_path(run_dir, step), ticket, config, step, optimizer, extra, unlogged)
        prune_checkpoints(run_dir, config.checkpoints.keep)

    def evaluate_trained() -> dict[str, float]:
        engine.sync(ticket.values.detach())
        return evaluate(engine, script, eval_tasks, config)

    status, reason = "finished", None
    try:
        if trained < 0:
            tracker.log(0, timed(lambda: evaluate_base(engine, script, eval_tasks, config, grid), "seconds/evaluation"))
            done = 0
        if unlogged is not None:
            tracker.log(trained, unlogged | timed(evaluate_trained, "seconds/evaluation"))
            done, unlogged = trained, None
        reason = past_collapse(tracker.journal, config)
        progress = tqdm(range(done + 1, config.train.steps + 1), desc="train", unit="step", initial=done, total=config.train.steps)
        for step in progress:
            if reason is not None and config.collapse.stop:
                break
            if requests.stop:
                status = "interrupted"
                break
            clock = Clock(policy.model.device)
            sent = engine.sync(ticket.values.detach() if lagged is None else lagged)
            clock.lap("sync")
            episodes = prompts(task, config, step)
            seed = ("rollout", config.seed.train, step)
            rollouts = play(
                engine, script, task, episodes, config.rollout.group_size, config.rollout.max_tokens, config.rollout.temperature, seed
            )
            clock.lap("rollout")

            rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64).view(-1, config.rollout.group_size)
            advantages = group_advantages(rewards, config.algorithm.advantage)
            batches = collate(rollouts, advantages.flatten().tolist(), config.train.micro_batch_tokens, policy.model.device, sharing)
            lagged = None if lagged is None else ticket.values.detach().clone()
            observe = None if collector is None else partial(collector.add, step)
            metrics = rollout_metrics(rollouts, rewards) | update(policy, ticket, optimizer, batches, config, base_values, observe)
            clock.lap("update")

            if reason is None and (reason := collapse_now(tracker.journal, metrics, config)) is not None:
                tqdm.write(f"collapsed at step {step}: {reason}")
            tokens = sum(rollout.completion_tokens for rollout in rollouts)
            metrics |= {f"seconds/{phase}": seconds for phase, seconds in clock.laps.items()} | (
                {"sync/bytes": float(sent)} if sent else {}
            )
            metrics |= {
                "tokens_per_second": tokens / sum(clock.laps.values()),
                "peak_memory_bytes": float(peak_memory(policy.model.device)),
            }
            unlogged = metrics
            ending = step == config.train.steps or (reason is not None and config.collapse.stop)
            if ending or (config.eval.every and step % config.eval.every == 0):
                metrics = metrics | timed(evaluate_trained, "seconds/evaluation")
                metrics["peak_memory_bytes"] = float(peak_memory(policy.model.device))
            tracker.log(step, metrics)
            progress.set_postfix(reward=f"{metrics['reward/mean']:.3f}", **eval_postfix(metrics))
            done, unlogged = step, None
            if requests.save or (config.checkpoints.every and step % config.checkpoints.every == 0):
                requests.save = False
                save(step)
        if reason is not None and status == "finished":
            status = "collapsed"
        save(done)
    except BaseException as error:
        status, reason = "failed", str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, EngineError) and done >= 0:
            save(done if unlogged is None else done + 1)
        raise
    finally:
        summary = summarize_run(tracker.journal, config, ticket, status, reason, optimizer)
        try:
            write_json(run_dir / "summary.json", summary)
        except OSError as error:
            tqdm.write(f"warning: {run_dir / 'summary.json'} could not be written ({error})")
        tracker.close(MLFLOW_STATUS[status], {"mth.status": status} | ({"mth.reason": reason} if reason else {}))
        engine.close()
        claimed.close()
    return summary


def check_rows(task: Task, config: Config) -> None:
    """Raise UserError when a step needs more prompts than there are."""
    count, size = config.prompts_per_step, len(task.train)
    if size < count:
        raise UserError(f"task {task.name} has {size} training rows, fewer than the {count} prompts of a step; lower train.batch_size")


def prompts(task: Task, config: Config, step: int) -> list[Episode]:
    """The episodes of a step (1, 2, ...), a function of `seed.train` and the step alone, so that nothing has to be saved for a resume."""
    count, size = config.prompts_per_step, len(task.train)
    if config.train.prompt_order is PromptOrder.draws:
        return [task.train[i] for i in permutation(derive_seed("prompts", config.seed.train, "draw", step), size)[:count]]
    chosen: list[Episode] = []
    position = (step - 1) * count
    while len(chosen) < count:
        epoch, offset = divmod(position + len(chosen), size)
        order = permutation(derive_seed("prompts", config.seed.train, epoch), size)
        chosen += [task.train[i] for i in order[offset : offset + count - len(chosen)]]
    return chosen


def rollout_metrics(rollouts: list[Rollout], rewards: torch.Tensor) -> dict[str, float]:
    """What the rollouts of a step [P, G] look like."""
    lengths = [rollout.completion_tokens for rollout in rollouts]
    return {
        "reward/mean": rewards.mean().item(),
        "reward/std": rewards.std(correction=0).item(),
        "reward/pass": mean([float(is_right(rollout.reward)) for rollout in rollouts]),
        "groups/no_signal_share": no_signal(rewards).double().mean().item(),
        "completion/tokens_mean": mean(lengths),
        "completion/tokens_max": float(max(lengths)),
        "completion/truncated_share": mean([float(rollout.truncated) for rollout in rollouts]),
        **{f"score/{key}": mean([rollout.scores[key] for rollout in rollouts]) for key in rollouts[0].scores if key != "reward"},
    }


class Clock:
    """Seconds per phase of one step. On a GPU a lap waits for the device, so that a phase pays for its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now


def timed(work: Callable[[], dict[str, float]], key: str) -> dict[str, float]:
    """The metrics that `work` returns, and how many seconds it took under `key`."""
    start = time.perf_counter()
    metrics = work()
    return metrics | {key: time.perf_counter() - start}


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this process: allocated on the GPU that trains, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def eval_postfix(metrics: dict[str, float]) -> dict[str, str]:
    return {key.split("/")[1]: f"{value:.3f}" for key, value in metrics.items() if key.startswith("eval/") and key.endswith("/pass_at_1")}


def collapse_now(journal: Journal, metrics: dict[str, float], config: Config) -> str | None:
    """Why the run counts as collapsed at the step with these metrics, which the journal does not have yet; None if it does not."""
    rewards, entropies = ([*journal.series(key), metrics[key]] for key in ("reward/mean", "entropy"))
    return collapse_reason(rewards, entropies, metrics, config.collapse)


def past_collapse(journal: Journal, config: Config) -> str | None:
    """What `collapse_now` first said on the way to where the journal ends: a resumed run stays marked."""
    steps = [entry.metrics for entry in journal.entries if "reward/mean" in entry.metrics]
    rewards, entropies = ([metrics[key] for metrics in steps] for key in ("reward/mean", "entropy"))
    reasons = (collapse_reason(rewards[: i + 1], entropies[: i + 1], metrics, config.collapse) for i, metrics in enumerate(steps))
    return next((reason for reason in reasons if reason is not None), None)


def summarize_run(
    journal: Journal, config: Config, ticket: Ticket, status: str, reason: str | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What `summary.json` holds; derived from the journal, so that a resumed run and an uninterrupted one agree."""
    evaluations = [entry for entry in journal.entries if any(key.startswith("eval/") for key in entry.metrics)]

    def results(index: int) -> dict[str, dict[str, float]]:
        if not evaluations:
            return {}
        metrics = evaluations[index].metrics
        return {name: {key: metrics[f"eval/{name}/{key}"] for key in ("pass_at_1", "reward")} for name in config.eval.tasks or []}

    phases = ("rollout", "update", "sync", "evaluation")
    seconds = {phase: sum(journal.series(f"seconds/{phase}")) for phase in phases}
    generated = sum(journal.series("completion/tokens_mean")) * config.train.batch_size
    return {
        "status": status,
        "reason": reason,
        "steps": journal.entries[-1].step if journal.entries else 0,
        "label": config.label,
        "active_parameters": ticket.active_parameters,
        "total_parameters": ticket.total_parameters,
        "mask_sha256": ticket.mask_sha256,
        "learning_rate": config.lr.value,
        "base": results(0),
        "final": results(-1),
        "seconds": seconds,
        "tokens_per_second": generated / max(sum(seconds.values()) - seconds["evaluation"], 1e-9),
        "ticket_bytes": ticket.memory(optimizer),
        "peak_memory_bytes": max(journal.series("peak_memory_bytes"), default=float(peak_memory(ticket.values.device))),
    }
