"""python -m mth.evaluate: pass@1 and mean reward of a model, or of a trained ticket.

Usage
  python -m mth.evaluate [KEY=VALUE ...]                    a model, e.g. model=qwen2.5-0.5b task=gsm8k
  python -m mth.evaluate checkpoint=PATH [KEY=VALUE ...]    a checkpoint file, or the newest one of a run folder
  python -m mth.evaluate --help [SECTION ...]               all keys, or those of a section, e.g. eval

With checkpoint= model, mask and task are those of the run; further keys change them, e.g. task=arithmetic eval.samples=1000
eval.temperature=0 (greedy). --json prints the result as JSON.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mth.config.cli import asks_for_help, one_line_errors
from mth.foundations.errors import require

if TYPE_CHECKING:
    from mth.config.schema import Config


def overlay(stored: dict[str, Any], composed: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The stored configuration with what the command line names: a group choice replaces its section, a dotted key its value.

    A task chosen anew is also what gets evaluated, unless eval.tasks is given.
    """
    result = dict(stored)
    for override in overrides:
        path = override.lstrip("+~").partition("=")[0].split(".")
        whole = path[0] in stored and path != ["algorithm"]  # an experiment, a recipe or an algorithm preset reaches into several sections
        require(whole, f"{override}: with checkpoint= choose a task or single keys, not {path[0]}=")
        target, source = result, composed
        for part in path[:-1]:
            target[part] = dict(target[part])
            target, source = target[part], source[part]
        target[path[-1]] = source[path[-1]]
        if path == ["task"] and not any(o.startswith("eval.tasks=") for o in overrides):
            result["eval"] = result["eval"] | {"tasks": None}
    return result


def evaluation(overrides: list[str]) -> "tuple[Config, dict[str, float]]":
    """Configuration and metrics of the evaluation that these overrides ask for."""
    from mth.config.compose import compose
    from mth.config.overrides import rewrite_numbers
    from mth.config.stored import from_plain, load, to_plain

    config = load(compose(overrides))
    from mth.runs.checkpoint import open_checkpoint
    from mth.training.evaluation import evaluate
    from mth.training.setup import assemble

    checkpoint = None
    if config.checkpoint is not None:
        checkpoint = open_checkpoint(Path(config.checkpoint))
        config = from_plain(overlay(checkpoint.header["config"], to_plain(config), rewrite_numbers(overrides)))
    with assemble(config, checkpoint) as parts:
        return config, evaluate(parts.player, parts.eval_tasks, config)


@one_line_errors
def main(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        from mth.config.help import command_help

        print(command_help(__doc__, [argument for argument in arguments if not argument.startswith("-")]))
        return
    config, metrics = evaluation([argument for argument in arguments if argument != "--json"])
    if "--json" in arguments:
        print(json.dumps(metrics, indent=1))
        return
    print(f"{'task':16}{'pass@1':>8}{'reward':>8}{'tokens':>8}{'cut off':>9}")
    for task in config.eval.tasks or []:
        values = [metrics[f"eval/{task}/{key}"] for key in ("pass_at_1", "reward", "completion_tokens", "truncated_share")]
        print(f"{task:16}{values[0]:8.3f}{values[1]:8.3f}{values[2]:8.1f}{values[3]:9.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
