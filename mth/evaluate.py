"""python -m mth.evaluate: pass@1 and mean reward of a model, or of a trained ticket.

Usage
  python -m mth.evaluate [KEY=VALUE ...]                    a model, e.g. model=qwen2.5-0.5b task=gsm8k
  python -m mth.evaluate checkpoint=PATH [KEY=VALUE ...]    a checkpoint file, or the newest one of a run folder
  python -m mth.evaluate --help [SECTION ...]               all keys, or those of a section, e.g. eval

With checkpoint= model, mask and task are those of the run; further keys change them, e.g. task=arithmetic eval.samples=1000
eval.temperature=0 (greedy). --json prints the result as JSON.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mth.config.cli import asks_for_help, one_line_errors
from mth.foundations.errors import require
from mth.foundations.files import to_json
from mth.foundations.output import prepare_output
from mth.foundations.secrets import TOKEN_VARIABLE
from mth.foundations.statistics import plus_minus

if TYPE_CHECKING:
    from mth.config.schema import Config
    from mth.training.evaluation import Evaluation


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
            target[part] = dict(target.get(part) or {})
            target, source = target[part], source[part]
        target[path[-1]] = source[path[-1]]
        if path == ["task"] and not any(o.startswith("eval.tasks=") for o in overrides):
            result["eval"] = result["eval"] | {"tasks": None}
    return result


def keep_token(config: "Config", overrides: list[str]) -> None:
    """Raise UserError if the secret of an engine would go to an address that only a checkpoint names."""
    typed = any(override.partition("=")[0] == "rollout.url" for override in overrides)
    secret = os.environ.get(TOKEN_VARIABLE) and config.rollout.engine == "vllm_server"
    require(
        typed or not secret,
        f"the checkpoint names the engine {config.rollout.url}, which would get {TOKEN_VARIABLE}: add rollout.url={config.rollout.url}, "
        "or rollout.engine=hf to use none",
    )


def keep_own_code(config: "Config", overrides: list[str]) -> None:
    """Raise UserError if code would run that only a checkpoint names."""
    from mth.config.user_code import code_of
    from mth.foundations.user_code import parse

    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    for key, text in code_of(config).items():
        name = key.removeprefix("eval.sources.")
        idle = key == "algorithm.source" or (name != key and name not in (config.eval.tasks or []))
        require(
            idle or key in typed,
            f"the checkpoint names code of its own, which would run: add {key}={parse(text, key).shown} if it is yours",
        )


def evaluation(overrides: list[str]) -> "tuple[Config, Evaluation]":
    """The evaluation that these overrides ask for, and its configuration.

    With a checkpoint, tasks that its run evaluated have the run's limits and samples, others those of their own recipes.
    """
    from omegaconf import OmegaConf

    from mth.config.compose import compose
    from mth.config.overrides import rewrite_numbers
    from mth.config.recipes import load_run, with_own_recipes
    from mth.config.stored import from_plain

    composed = compose(overrides)
    config = load_run(composed, overrides)
    from mth.runs.checkpoint import open_checkpoint
    from mth.training.evaluation import evaluate, warn_of_cut_replies
    from mth.training.setup import assemble

    checkpoint = None
    if config.checkpoint is not None:
        checkpoint = open_checkpoint(Path(config.checkpoint))
        run, plain = checkpoint.config, OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        assert isinstance(plain, dict)
        config = from_plain(
            overlay(checkpoint.header["config"], {str(key): value for key, value in plain.items()}, rewrite_numbers(overrides, own=False))
        )
        config = with_own_recipes(config, overrides, as_given=run.eval.tasks or [])
        keep_token(config, overrides)
        keep_own_code(config, overrides)
    with assemble(config, checkpoint) as parts:
        result = evaluate(parts.player, parts.eval_tasks, config)
    warn_of_cut_replies(result.metrics, config)
    return config, result


@one_line_errors
def main(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        from mth.config.help import command_help

        print(command_help(__doc__, [argument for argument in arguments if not argument.startswith("-")]))
        return
    from mth.config.overrides import as_overrides

    prepare_output()
    _, result = evaluation(as_overrides([argument for argument in arguments if argument != "--json"]))
    if "--json" in arguments:
        print(to_json(result.metrics, indent=1))
        return
    print(f"{'task':16}{'prompts':>8}{'pass@1':>16}{'reward':>16}{'tokens':>8}{'cut off':>9}")
    for task in result.rewards:
        values = {key.split("/")[2]: value for key, value in result.metrics.items() if key.startswith(f"eval/{task}/")}
        measured = "".join(f"{plus_minus(values[key], values.get(f'{key}_error')):>16}" for key in ("pass_at_1", "reward"))
        print(f"{task:16}{values['prompts']:8.0f}{measured}{values['completion_tokens']:8.1f}{values['truncated_share']:9.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
