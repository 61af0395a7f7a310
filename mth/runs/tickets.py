"""The ticket of a run's checkpoint, put on a model that somebody else has loaded."""

from torch import nn

from mth.foundations.errors import UserError, require
from mth.runs.checkpoint import Checkpoint
from mth.tickets.attach import AttachedTicket, attach, attach_saved
from mth.tickets.masks import own_family
from mth.tickets.recipes import family_recipe
from mth.tickets.saved import FINGERPRINT, SavedTicket


def attach_checkpoint(model: nn.Module, checkpoint: Checkpoint, own_code: bool = False) -> AttachedTicket:
    """Attach the ticket of a checkpoint to its base model.

    own_code: run the mask family that the checkpoint names in a file. Raises UserError, and leaves the model as it is, if it names one and
    own_code is false, or if the checkpoint belongs to another base model.
    """
    config, header = checkpoint.config, checkpoint.header
    mask, percent, seed = config.mask, config.sparsity.percent, config.mask_seed
    facts, values = {key: header[key] for key in FINGERPRINT}, checkpoint.tensors["values"]
    if mask.source is None:
        named = {"budget": mask.budget, "magnitude": mask.magnitude}
        options = {key: value.name for key, value in named.items() if value is not None} | mask.options
        return attach_saved(model, SavedTicket(checkpoint.path, family_recipe(mask.family, percent, seed, options), facts, values))
    place = mask.source.partition("#")[0]
    require(own_code, f"the checkpoint names a mask family of its own, which would run: export it, and add --own-code if {place} is yours")
    ticket = attach(model, percent, own_family(mask.source), seed, **mask.options)
    try:
        ticket.load_values(SavedTicket(checkpoint.path, ticket.recipe, facts, values))
    except UserError:
        ticket.detach()
        raise
    return ticket
