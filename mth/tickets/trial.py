"""Whether kernels can be used: each is tried once on a device, against what it has to give."""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

import torch
from tqdm import tqdm

from mth.foundations.errors import first_line
from mth.tickets.launches import move, tables_of
from mth.tickets.products import add_products, transposed


def moves_work(device: torch.device) -> bool:
    """Returns True if kernels can move a ticket's entries on this device. Says in one line if a GPU with Triton cannot."""
    return _works(device, _try_moves)


def products_work(device: torch.device) -> bool:
    """Returns True if kernels can compute sampled gradients on this device. Says in one line if a GPU with Triton cannot."""
    return _works(device, _try_products)


def _works(device: torch.device, trial: Callable[[torch.device], None]) -> bool:
    return device.type == "cuda" and find_spec("triton") is not None and _tried(device, trial)


@cache
def _tried(device: torch.device, trial: Callable[[torch.device], None]) -> bool:
    try:
        trial(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # triton, the C compiler and the driver raise many types
        tqdm.write(
            f"a ticket's kernels do not work here, so torch does their work, slower: {type(error).__name__}: {first_line(error, 160)}"
        )
        return False
    return True


def _try_moves(device: torch.device) -> None:
    """Raise RuntimeError if entries do not end where they should. bf16 has to be rounded to the nearest even number: 259 to 260."""
    on = partial(torch.tensor, device=device)
    tensors = {"some": on([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16), "all": on([5.0, 6.0], dtype=torch.bfloat16)}
    indices = {"some": on([1, 2], dtype=torch.int32), "all": None}
    tables, flat = tables_of(tensors, indices, {"some": slice(0, 2), "all": slice(2, 4)}), on([10.0, 20.0, 30.0, 253.0])
    move("add", tables, flat)
    move("write", tables, flat)
    move("read", tables, flat)
    found = [*flat.tolist(), *tensors["some"].flatten().tolist(), *tensors["all"].tolist()]
    if found != [12.0, 23.0, 35.0, 260.0, 1.0, 12.0, 23.0, 4.0, 35.0, 260.0]:
        raise RuntimeError(f"moved entries became {found}")


def _try_products(device: torch.device) -> None:
    """Raise RuntimeError if a sum of products is wrong, or not the same twice. Whole numbers, whose sums are exact."""
    tokens, rows, columns = 333, 5, 70
    numbers = torch.arange(tokens * columns, device=device).view(tokens, columns)
    x, dy = (numbers % 7 - 3).bfloat16(), (numbers[:, :rows] % 5 - 2).bfloat16()
    index = torch.arange(0, rows * columns, 3, device=device, dtype=torch.int32)
    expected = 1 + (dy.float().t() @ x.float()).flatten()[index.long()]
    for _ in range(2):
        out = torch.ones_like(expected)
        add_products(out, index, transposed(dy), transposed(x))
        if not torch.equal(out, expected):
            raise RuntimeError("a sum of products is wrong")
