"""python -m mth.train: one run, or with -m a grid of them (which `mth.grid` launches)."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mth.cli import hydra_main
from mth.config import check_trainable, load, require
from mth.signals import listen


def report(summary: dict[str, Any], run_dir: Path, tracking: str | None) -> None:
    """What a user wants to know at the end: before and after, where it is, how to look at it."""
    print(
        f"\n{summary['status']} after {summary['steps']} steps, {summary['active_parameters']:,} of {summary['total_parameters']:,} parameters trained"
    )
    if summary["reason"]:
        print(f"reason: {summary['reason']}")
    for task, base in summary["base"].items():
        final = summary["final"][task]
        gain = final["pass_at_1"] - base["pass_at_1"]
        print(
            f"{task:14} pass@1  base {base['pass_at_1']:.3f} -> trained {final['pass_at_1']:.3f} ({gain:+.3f})   reward {base['reward']:.3f} -> {final['reward']:.3f}"
        )
    print(f"run folder:     {run_dir}")
    if tracking:
        print(f"MLflow UI:      {tracking}")


def main(cfg: DictConfig) -> None:
    config = load(cfg)
    check_trainable(config)
    require(config.checkpoint is None, "checkpoint= belongs to mth.evaluate; to continue a run give its run_dir=, or resume=true")
    from hydra.core.hydra_config import HydraConfig

    choice = HydraConfig.get().runtime.choices["hydra/launcher"]
    require(choice == "local" and not config.detach, "hydra/launcher= and detach= are for grids: add -m, also for a grid of one cell")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    root = Path("multirun").resolve()
    if config.resume and not (run_dir / "config.yaml").is_file():
        from mth.runs import find_unfinished

        found = find_unfinished(root, config)
        require(
            found is not None,
            f"resume=true: no unfinished run with this configuration under {root}; give run_dir=<its folder>, or leave resume out",
        )
        assert found is not None
        run_dir = found
    if not config.force and not (run_dir / "config.yaml").is_file():
        from mth.runs import shorter_runs, start_from

        for shorter in shorter_runs([root], [config]).values():
            print(f"the beginning of this run is {shorter}; going on from there (force=true starts anew)")
            start_from(shorter, run_dir)
    from mth.tracking import Store, default_uri, ui_command
    from mth.trainer import train

    requests = listen()
    summary = train(config, run_dir, root, requests)
    tracking = ui_command(config.tracker.uri or default_uri(root)) if config.tracker.name is Store.mlflow else None
    report(summary, run_dir, tracking)
    if requests.received is not None:
        raise SystemExit(128 + requests.received)


if __name__ == "__main__":
    hydra_main(main)
