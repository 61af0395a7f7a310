"""Random sparse tickets for reinforcement learning with verifiable rewards. `python -m mth` lists the commands.

`mth.attach` and `mth.load_ticket` put a ticket into a training loop of your own. They load torch when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mth.library import AttachedTicket, attach, load_ticket

__all__ = ["AttachedTicket", "attach", "load_ticket"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mth' has no attribute {name!r}")
    from mth import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
