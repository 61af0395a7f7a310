"""What the model card of a run's ticket says: how it was trained, and what came out."""

from mth.runs.checkpoint import Checkpoint
from mth.runs.folder import RunFolder
from mth.runs.metrics import with_error


def training_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Settings of the run that wrote a checkpoint, by name."""
    config = checkpoint.config
    return {
        "task": config.task.name,
        "steps": f"{checkpoint.header['step']} of {config.train.steps}",
        "rollouts per step": f"{config.train.batch_size}, in groups of {config.rollout.group_size}",
        "optimizer": config.optimizer.name.name,
        "learning rate": f"{config.lr.value:g}",
        "run": checkpoint.header["identity"],
    }


def results_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Reward and pass@1 of the base model and after training, with standard errors over prompts. Empty unless this is the run's last step."""
    summary = RunFolder(checkpoint.path.parent.parent).summary()
    if summary.steps != checkpoint.header["step"]:
        return {}
    return {
        f"{task}, {key}": f"{_with_error(before, key)} before, {_with_error(summary.final[task], key)} after"
        for task, before in summary.base.items()
        for key in before
        if task in summary.final and key in summary.final[task] and with_error(key) in before
    }


def _with_error(values: dict[str, float], key: str) -> str:
    error = values.get(with_error(key))
    return f"{values[key]:.3f}" + ("" if error is None else f" ± {error:.3f}")
