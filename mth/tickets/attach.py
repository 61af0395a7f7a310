"""A ticket on anyone's model, in anyone's training loop: `mth.attach`."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import write_text
from mth.tickets.card import CARD, card, refuse_foreign_card
from mth.tickets.draw import flat_weights
from mth.tickets.hooks import PLACE, add_values, after_step, before_step, remove, take_values
from mth.tickets.hub import push
from mth.tickets.peft import write_adapter
from mth.tickets.recipes import Mask, MaskFunction, draw_recipe
from mth.tickets.saved import SavedTicket, header_of, refuse_other, write_ticket
from mth.tickets.ticket import Ticket, attached_ticket


class AttachedTicket(nn.Module):
    """The trainable part of a model, in a training loop of your own. Made by `mth.attach` and `mth.load_ticket`.

    It is the model's last module, `model.mth_ticket`, and lives as long as the model, or until `merge()` or `detach()`. Its only parameter is
    `values`, fp32 [K], so `model.parameters()` contains it: a loop that clips or clears the gradients of the model clips or clears the
    ticket's. Each dense gradient is gathered into `values.grad` and freed as soon as autograd has it. A step of any torch.optim optimizer
    over `values` writes the new values into the model. `model.state_dict()` does not contain the ticket.

    base_values: the base model's values at the active entries, fp32 [K].
    """

    def __init__(self, model: nn.Module, ticket: Ticket, recipe: dict[str, Any], base_model: str) -> None:
        super().__init__()
        self.values = ticket.values
        self.base_values = ticket.values.detach().clone()  # no buffer: a model that is cast keeps it in fp32
        self.recipe, self.base_model = recipe, base_model
        self._ticket, self._model = ticket, weakref.ref(model)
        owner = weakref.ref(ticket)
        handles = [
            register_optimizer_step_pre_hook(partial(before_step, owner)),
            register_optimizer_step_post_hook(partial(after_step, owner)),
        ]
        self._remove_hooks = weakref.finalize(ticket, remove, handles)
        self._remove_hooks.atexit = False
        model.add_module(PLACE, self)

    @property
    def active_parameters(self) -> int:
        """K, the number of trained entries."""
        return self._ticket.active_parameters

    @property
    def total_parameters(self) -> int:
        """Number of entries of the whole model, without the ticket."""
        return self._ticket.total_parameters

    @property
    def mask_sha256(self) -> str:
        """Hash of the mask: equal masks of equal shapes have equal hashes, here and in runs of `python -m mth.train`."""
        return self._ticket.mask_sha256

    @property
    def base_sha256(self) -> str:
        """Hash of the base model's values at the active entries."""
        return self._ticket.base_sha256

    @property
    def nbytes(self) -> int:
        """Allocated bytes: values, base values, gradient and indices. The optimizer's state comes on top."""
        tensors = [self.values, self.base_values, self.values.grad, *self._ticket.indices.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    def optimizer(self, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
        """A torch.optim optimizer of the ticket, for instance `ticket.optimizer(torch.optim.AdamW, lr=1e-4)`. Its state is K long.

        Its `state_dict()` holds the fp32 values too, so that a bf16 model resumes exactly. Loading it writes them into the model.
        Raises UserError if the ticket is no longer on its model.
        """
        self._host()
        optimizer = kind([self.values], **options)
        owner = weakref.ref(self._ticket)
        optimizer.register_state_dict_post_hook(partial(add_values, owner))
        optimizer.register_load_state_dict_pre_hook(partial(take_values, owner))
        return optimizer

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """Within, the model is the base model: a reference policy without a second copy. Raises UserError as `optimizer` does."""
        model = self._host()
        with self._ticket.swapped(self.base_values):
            yield model

    def save(
        self,
        folder: str | Path,
        format: str = "ticket",
        results: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        hub_id: str | None = None,
    ) -> None:
        """Write the ticket to a folder, with a model card. What an earlier call wrote there is replaced.

        format: "ticket" for recipe, K values and base fingerprint, which `mth.load_ticket` reads; works after `merge` and `detach` too.
        "peft" for a SHiRA adapter, which PEFT reads. results, training: rows of the card's tables, name -> text or number. hub_id: where the
        card says that the folder can be found. Raises UserError if the folder cannot be written, or if the format cannot hold the ticket.
        """
        folder, adapter = Path(folder), format == "peft"
        require(format in ("ticket", "peft"), f'format={format} is unknown; choose "ticket" or "peft", or call merge() and save the model')
        refuse_foreign_card(folder)
        header = header_of(self._ticket, self.recipe, self.base_model, results or {}, training or {})
        try:
            if adapter:
                write_adapter(folder, self._host(), self._ticket, self.base_values, header["base_model"])
            else:
                write_ticket(folder, self._ticket, header)
            self.write_card(folder, format, results, training, hub_id)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder} could not be written ({first_line(error)}); make room or choose another folder") from error

    def write_card(
        self,
        folder: Path,
        format: str,
        results: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        hub_id: str | None = None,
    ) -> None:
        """Write the model card alone, see `save`. format: "merged" for a folder that holds the whole model."""
        header = header_of(self._ticket, self.recipe, self.base_model, results or {}, training or {})
        write_text(folder / CARD, card(format, header, hub_id or folder.name))

    def push_to_hub(
        self,
        hub_id: str,
        format: str = "ticket",
        private: bool | None = None,
        results: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
    ) -> str:
        """Upload what `save` writes to a model repository of the Hugging Face hub, which is made if it is new. Returns its address.

        private: None for the account's default. Raises UserError as `save` does, and if the hub refuses.
        """
        with TemporaryDirectory() as folder:
            self.save(folder, format, results, training, hub_id)
            return push(Path(folder), hub_id, private)

    def merge(self) -> nn.Module:
        """Take the ticket off and leave the trained values in the model, which is plain again. Returns the model."""
        model = self._host()
        self._ticket.write()
        self._release(model)
        return model

    def detach(self) -> nn.Module:
        """Take the ticket off and put the base values back into the model. Returns the model. The ticket keeps its own values."""
        model = self._host()
        self._ticket.write(self.base_values)
        self._release(model)
        return model

    def load_values(self, saved: SavedTicket) -> None:
        """Put the values of a saved ticket into the model. Raises UserError if it belongs to another base model or mask."""
        refuse_other(saved, self._ticket)
        self._ticket.values.data.copy_(saved.values)
        self._ticket.write()

    def forward(self, x: Any) -> Any:
        """The input. Containers such as nn.Sequential call each of their modules."""
        return x

    def _host(self) -> nn.Module:
        model = self._model()
        if model is None or getattr(model, PLACE, None) is not self:
            raise UserError("the ticket is no longer on its model; call mth.attach or mth.load_ticket again")
        return model

    def _release(self, model: nn.Module) -> None:
        delattr(model, PLACE)
        self._remove_hooks()
        self._ticket.detach()
        self._ticket.values.grad = None

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Nothing: the model's own weights hold the values. `save` writes the ticket."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        """After the model has loaded weights: take over what is new. Values that the model's dtype only rounds stay as they are."""
        replaced = local_metadata.get("assign_to_params_buffers", False)
        require(not replaced, "load_state_dict(assign=True) takes away the parameters that the ticket trains; leave assign out")
        held, ticket = self._ticket.read(), self._ticket
        written = torch.cat([ticket.values.data[place].to(ticket.parameters[n].dtype).float() for n, place in ticket.slices.items()])
        ticket.values.data.copy_(torch.where(held == written, ticket.values.data, held))

    def _apply(self, fn: Any, recurse: bool = True) -> "AttachedTicket":
        """Follow a model that moves to another device. The values stay fp32, whatever the model is cast to."""
        device = fn(torch.empty(0, device=self.values.device)).device
        self._ticket.to_device(device)
        self.base_values = self.base_values.to(device)
        return self

    def __reduce__(self) -> Any:
        """A copy of the model has no ticket."""
        return type(None), ()

    def __repr__(self) -> str:
        share = 100 * self.active_parameters / self.total_parameters
        counts = f"{self.active_parameters:,} of {self.total_parameters:,} parameters ({share:.3g} %)"
        return f"Ticket({counts}, {describe(self.recipe)}, mask sha256 {self.mask_sha256[:12]}, {self.nbytes:,} bytes)"


def attach(
    model: nn.Module, sparsity: float | None = None, mask: Mask | MaskFunction = "random", mask_seed: int | None = None, **options: Any
) -> AttachedTicket:
    """Choose the entries of a model that are trained, and freeze all others. The model's values stay as they are.

    sparsity: percent of each tensor's entries that stay frozen, in [0, 100). mask_seed: seed of the mask, of nothing else. Model, sparsity,
    seed and options give the mask that `python -m mth.train` draws for them. mask is one of:

    - the name of a family, such as "random" or "magnitude", whose keys are options: magnitude="smallest", budget="whole_layer"
    - a function (name, weight, count, mask_seed) -> entries of one tensor; count is what the floor rule gives at this sparsity
    - a dictionary from names of tensors to entries; other tensors stay frozen; takes no sparsity and no mask_seed

    Entries are flat indices in any order, a boolean mask of the tensor's shape, or None for all.

    Raises UserError if the model has a ticket, is spread over devices or quantized, or if the mask does not fit it.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    parameters = trainable_tensors(model)
    recipe, indices = draw_recipe(parameters, sparsity, mask, mask_seed, options, lambda name: flat_weights(parameters[name]))
    return attach_indices(model, parameters, indices, recipe)


def attach_saved(model: nn.Module, saved: SavedTicket) -> AttachedTicket:
    """Attach the ticket that was saved. Raises UserError, and leaves the model as it is, if it belongs to another base model."""
    model = getattr(model, "_orig_mod", model)
    parameters = trainable_tensors(model)
    indices = saved.draw(parameters, lambda name: flat_weights(parameters[name]))
    ticket = attach_indices(model, parameters, indices, saved.recipe)
    try:
        ticket.load_values(saved)
    except Exception:
        ticket.detach()
        raise
    return ticket


def attach_indices(model: nn.Module, parameters: dict[str, nn.Parameter], indices: Any, recipe: dict[str, Any]) -> AttachedTicket:
    """Attach a ticket of these entries. Its base model has the name that transformers loaded it by."""
    config = getattr(model, "config", None)
    return AttachedTicket(model, Ticket(parameters, indices), recipe, str(getattr(config, "_name_or_path", "") or ""))


def trainable_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name, tied ones once. Raises UserError if a ticket cannot train them."""
    require(isinstance(model, nn.Module), f"mth.attach needs a torch module, not {type(model).__name__}")
    parameters = dict(model.named_parameters())
    require(
        getattr(model, PLACE, None) is None,
        f"the model has a ticket already: call model.{PLACE}.merge() to keep what it learned, or model.{PLACE}.detach() to undo it",
    )
    require(attached_ticket(parameters.values()) is None, "a part of the model has a ticket already; call its merge() or detach() first")
    require(bool(parameters), "the model has no parameters")
    places = sorted({str(parameter.device) for parameter in parameters.values()})
    require(len(places) == 1, f"the model is spread over {', '.join(places)}; load it to one device, without device_map")
    require(places != ["meta"], "the model has no weights yet (device meta); load them before mth.attach")
    for name, parameter in parameters.items():
        require(parameter.is_floating_point(), f"{name} holds {parameter.dtype}: a quantized model cannot be trained; load it unquantized")
        require(parameter.is_contiguous(), f"{name} is not contiguous in memory; call mth.attach before wrapping or sharding the model")
    return parameters


def describe(recipe: dict[str, Any]) -> str:
    """A mask in a few words."""
    said = [f"mask {recipe['family']}"]
    said += [f"{recipe['sparsity']:g} %"] if recipe.get("sparsity") is not None else []
    said += [f"seed {recipe['mask_seed']}"] if recipe.get("mask_seed") is not None else []
    return ", ".join(said)
