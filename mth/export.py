"""python -m mth.export: write a trained ticket for others: merged into its model, as a ticket, or as an adapter of PEFT."""

import argparse
from pathlib import Path
from typing import Any

from mth.config.cli import one_line_errors
from mth.foundations.errors import require

FORMATS = {
    "merged": "load it with AutoModelForCausalLM.from_pretrained, or train on it with model.path={out} lr=...",
    "ticket": 'load it onto its base model with mth.load_ticket(model, "{out}")',
    "peft": 'load it onto its base model with PeftModel.from_pretrained(model, "{out}")',
}


def export(
    source: Path, out: Path, format: str = "merged", push: str | None = None, private: bool | None = None, own_code: bool = False
) -> str | None:
    """Write a ticket to `out`, with a model card. format: a key of FORMATS; `merged` writes model and tokenizer as `save_model` does.

    push: hub id of a model repository to upload the folder to, whose address is returned. own_code: run the mask family that the checkpoint
    names in a file. Raises UserError if `out` is not empty, if `source` is not a checkpoint, if it names such a family and own_code is false,
    or if the format cannot hold the ticket.
    """
    require(not out.is_file(), f"{out} is a file; choose a new folder")
    require(not out.exists() or not any(out.iterdir()), f"{out} is not empty; choose another folder")
    from mth.models.load import load_policy
    from mth.models.save import save_model
    from mth.runs.checkpoint import open_checkpoint
    from mth.runs.contents import refuse_other_model
    from mth.runs.facts import results_of, training_of
    from mth.runs.tickets import attach_checkpoint
    from mth.tickets.hub import push as upload

    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    config.model.device = "cpu"
    policy = load_policy(config.model)
    refuse_other_model(checkpoint.path.parent.parent, config)
    ticket = attach_checkpoint(policy.model, checkpoint, own_code)
    ticket.base_model = config.model.path or config.model.name
    facts: dict[str, Any] = {"results": results_of(checkpoint), "training": training_of(checkpoint), "hub_id": push}
    if format == "merged":
        ticket.merge()
        ticket.write_card(out, format, **facts)
        save_model(policy.model, policy.tokenizer, out)
    else:
        ticket.save(out, format, **facts)
    return upload(out, push, private) if push else None


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mth.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint file, or a run folder (its newest one)")
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--format", choices=FORMATS, default="merged", help="merged: a plain Hugging Face checkpoint (default)")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the folder to this model repository of the Hugging Face hub")
    parser.add_argument("--private", action="store_true", default=None, help="with --push: make a new repository private")
    parser.add_argument("--own-code", action="store_true", help="run the file of the mask family that the checkpoint names")
    given = parser.parse_args()
    address = export(given.checkpoint, given.out, given.format, given.push, given.private, given.own_code)
    print(f"{given.out}: {FORMATS[given.format].format(out=given.out)}" + (f"; uploaded to {address}" if address else ""))


if __name__ == "__main__":
    main()
