"""The model card of an exported ticket: what it is, how it was trained, what came out, how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mth.foundations.errors import require

CARD = "README.md"
TITLE = "# A sparse ticket of"
KINDS = ("ticket", "merged", "peft")
LOADING = {
    "ticket": """import mth
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="{dtype}")
ticket = mth.load_ticket(model, "{here}")""",
    "merged": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")""",
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="{dtype}")
model = PeftModel.from_pretrained(model, "{here}")""",
}
WHAT = {
    "ticket": "These are the trained entries of {base}.",
    "merged": "This is {base} with the trained entries merged in.",
    "peft": "These are the trained entries of {base}, as a SHiRA adapter of PEFT.",
}


def card(kind: str, header: Mapping[str, Any], here: str) -> str:
    """A README.md for a model hub. kind: one of KINDS. header: what `ticket.json` holds. here: hub id or folder, for the example."""
    base = header["base_model"] or "the base model"
    dtype = "auto" if " " in header["dtype"] else header["dtype"]  # several
    front = [
        "library_name: " + {"ticket": "mth", "merged": "transformers", "peft": "peft"}[kind],
        "tags: [mth, sparse-rlvr, sparse-training]",
    ]
    if header["base_model"].count("/") == 1:
        front.append(f"base_model: {header['base_model']}")
    active, total = header["active_parameters"], header["total_parameters"]
    recipe = {key: value for key, value in header["mask"].items() if value not in (None, {})}
    recipe |= {"trained": f"{active:,} of {total:,} parameters ({100 * active / total:.3g} %)"}
    recipe |= {"mask sha256": header["mask_sha256"], "base sha256": header["base_sha256"], "dtype of the base model": header["dtype"]}
    lines = ["---", *front, "---", "", f"{TITLE} {base}", ""]
    lines += [f"{WHAT[kind].format(base=base)} All other entries are those of the base model, bit for bit.", ""]
    lines += _table("Recipe", recipe) + _table("Training", header.get("training") or {}) + _table("Results", header.get("results") or {})
    lines += ["## Loading", "", "```python", LOADING[kind].format(base=base, dtype=dtype, here=here), "```"]
    return "\n".join(lines) + "\n"


def refuse_foreign_card(folder: Path) -> None:
    """Raise UserError if a folder has a README.md that `card` did not write."""
    file = folder / CARD
    ours = not file.exists() or TITLE in file.read_text(errors="replace")
    require(ours, f"{file} is not a ticket's model card and would be lost; choose another folder")


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    return [f"## {title}", "", "| | |", "| --- | --- |", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()), ""]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
