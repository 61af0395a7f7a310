"""python -m mth.export: merge a trained ticket into its model and write a plain Hugging Face checkpoint."""

import argparse
from pathlib import Path

from mth.config.cli import one_line_errors
from mth.foundations.errors import require


def export(source: Path, out: Path, own_code: bool = False) -> None:
    """Write model and tokenizer to `out`, as `save_model` does.

    own_code: run the mask family that the checkpoint names in a file. Raises UserError if `out` is not empty, if `source` is not a checkpoint,
    or if it names such a family and own_code is false.
    """
    require(not out.is_file(), f"{out} is a file; choose a new folder")
    require(not out.exists() or not any(out.iterdir()), f"{out} is not empty; choose another folder")
    from mth.models.save import save_model
    from mth.runs.checkpoint import open_checkpoint
    from mth.training.setup import assemble_ticket

    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    config.model.device = "cpu"
    family = config.mask.source and config.mask.source.partition("#")[0]
    require(
        family is None or own_code, f"the checkpoint names a mask family of its own, which would run: add --own-code if {family} is yours"
    )
    policy, _ = assemble_ticket(config, checkpoint)
    save_model(policy.model, policy.tokenizer, out)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mth.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint file, or a run folder (its newest one)")
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--own-code", action="store_true", help="run the file of the mask family that the checkpoint names")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.out, arguments.own_code)
    print(f"{arguments.out}: load it with AutoModelForCausalLM.from_pretrained, or train on it with model.path={arguments.out} lr=...")


if __name__ == "__main__":
    main()
