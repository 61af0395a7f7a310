"""What `import mth` offers to a program of your own: `attach` and `load_ticket`."""

import os
import re
from pathlib import Path

from torch import nn

from mth.foundations.errors import require
from mth.runs.checkpoint import open_checkpoint
from mth.runs.tickets import attach_checkpoint
from mth.tickets.attach import AttachedTicket, attach, attach_saved
from mth.tickets.hub import fetch
from mth.tickets.saved import HEADER, TENSORS, is_ticket, read_ticket

__all__ = ["AttachedTicket", "attach", "load_ticket"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_ticket(model: nn.Module, source: str | Path) -> AttachedTicket:
    """Attach a saved ticket to its base model.

    source: a folder that `ticket.save` wrote, a hub id, a checkpoint file of a run, or a run folder (its newest checkpoint).
    Raises UserError, and leaves the model as it is, if there is no such ticket or if it belongs to another base model.
    """
    path = Path(os.path.expanduser(source))
    if not path.exists():
        require(
            isinstance(source, str) and HUB_ID.fullmatch(source) is not None,
            f"ticket {source} does not exist: no file or folder, no hub id",
        )
        path = fetch(str(source), (HEADER, TENSORS))
    return attach_saved(model, read_ticket(path)) if is_ticket(path) else attach_checkpoint(model, open_checkpoint(path))
