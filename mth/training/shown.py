"""What is said of a run while it trains: the numbers beside the progress bar, and what to look at if it learns nothing."""

from collections.abc import Mapping, Sequence

from mth.config.schema import Config
from mth.foundations.progress import Bar
from mth.foundations.statistics import mean
from mth.runs.journal import Entry
from mth.runs.metrics import CUT_IN_TRAINING, NO_SIGNAL, PASS_AT_1, REWARD

MOSTLY = 0.5  # share of cut replies from which they are named as the cause
Passes = Mapping[str, tuple[int, float]]  # task -> step of the newest evaluation, and its pass@1


def passes(step: int, metrics: Mapping[str, float]) -> dict[str, tuple[int, float]]:
    """pass@1 of each task that was evaluated at a step."""
    return {key.split("/")[1]: (step, value) for key, value in metrics.items() if key.startswith("eval/") and key.endswith(f"/{PASS_AT_1}")}


def numbers(step: int, metrics: Mapping[str, float], newest: Passes) -> list[str]:
    """Reward and tokens per second of a step, and the newest pass@1 of each task, in words."""
    words = [f"reward {metrics[REWARD]:.3f}"] if REWARD in metrics else []
    for task, (evaluated, value) in newest.items():
        name = "pass@1" if len(newest) == 1 else f"{task} pass@1"
        words.append(f"{name} {value:.3f}" + (f" (step {evaluated})" if evaluated != step else ""))
    return [*words, f"{metrics['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in metrics else words


def latest(entries: Sequence[Entry]) -> list[str]:
    """The same for the end of a journal."""
    newest: dict[str, tuple[int, float]] = {}
    for entry in entries:
        newest |= passes(entry.step, entry.metrics)
    return numbers(entries[-1].step, entries[-1].metrics, newest) if entries else []


def show_step(bar: Bar, step: int, metrics: Mapping[str, float], newest: Passes) -> None:
    """Move the bar to a step, with its numbers. A step that was evaluated is always shown."""
    bar.set_postfix_str(", ".join(numbers(step, metrics, newest)), refresh=False)
    bar.update(step - bar.n)
    if any(evaluated == step for evaluated, _ in newest.values()):
        bar.refresh()


def why_nothing_was_learned(entries: Sequence[Entry], config: Config) -> str | None:
    """One line for a run whose rewards gave nothing to learn from: what was seen, and the keys to look at. None for any other run."""
    steps = [entry.metrics for entry in entries if REWARD in entry.metrics]
    if not steps or any(metrics.get(NO_SIGNAL, 0.0) < 1 for metrics in steps):
        return None
    cut, reward = (mean([metrics.get(key, 0.0) for metrics in steps]) for key in (CUT_IN_TRAINING, REWARD))
    if any(metrics[REWARD] > 0 for metrics in steps):
        seen = f"in all {len(steps)} steps the replies to a prompt had equal rewards ({reward:.3f} on average)"
        return f"{seen}: there was nothing to learn from; raise rollout.group_size= or rollout.temperature=, or take another task="
    seen = f"every reward was 0 in all {len(steps)} steps"
    if cut > MOSTLY:
        return f"{seen}, and {cut:.0%} of the replies were cut off at rollout.max_tokens={config.rollout.max_tokens}; raise rollout.max_tokens="
    return (
        f"{seen}, though {1 - cut:.0%} of the replies ended by themselves; read them with mth.samples, and look at task.prompt_format=, "
        "task.shots= and task.grader="
    )
