"""Fields that carry their own meaning, range and place in a run's identity: ranges, --help and the documentation follow from them."""

import math
from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_type_hints

from mth.config.options import values
from mth.foundations.errors import UserError


def key(
    default: Any,
    meaning: str,
    *,
    place: bool = False,
    group: str | None = None,
    later: bool = False,
    matters: Callable[[Any], bool] | None = None,
    **bounds: float,
) -> Any:
    """A dataclass field.

    meaning: one line for people. place: the key says where or how a run happens, so it's not part of its identity.
    group: the value is one that a file of conf/<group>/ gives the key. later: added after runs were published; it enters an identity only if it's not the default.
    matters: whether the key has an effect, given the whole configuration; where it has none, it takes its default (`reset_idle`).
    bounds: `least` and `most` (inclusive), `above` and `below` (exclusive); they imply a finite number. None is always allowed where the type does.
    """
    metadata = {"meaning": meaning, "place": place, "group": group, "later": later, "matters": matters, "bounds": bounds}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, *, place: bool = False) -> Any:
    """A field that holds a section of keys."""
    return field(default_factory=kind, metadata={"place": place})


@dataclass(frozen=True)
class Key:
    """One key of a configuration. name: dotted. choices: what it may be, if that is a fixed set."""

    name: str
    default: Any
    type: str
    meaning: str
    range: str
    choices: tuple[str, ...]
    place: bool
    later: bool


def keys(schema: type, prefix: str = "", place: bool = False) -> Iterator[Key]:
    """All keys of a dataclass schema, sections resolved, in order."""
    hints = get_type_hints(schema)
    for each in fields(schema):
        name, inside = f"{prefix}{each.name}", place or each.metadata.get("place", False)
        if is_dataclass(hints[each.name]):
            yield from keys(hints[each.name], f"{name}.", inside)
        elif not name.startswith("_"):
            yield _key(each, name, hints[each.name], inside)


def _key(each: Field, name: str, hint: Any, place: bool) -> Key:
    kinds = [kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if kind is not type(None)]
    kind, group = kinds[0], each.metadata.get("group")
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = tuple(option.name for option in kind)
    else:
        choices = values(group, "name" if get_args(kind) else each.name) if group else ()
    default = each.default if each.default_factory is MISSING else each.default_factory()
    text = getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind)
    return Key(
        name,
        default.name if isinstance(default, Enum) else default,
        text,
        each.metadata.get("meaning", ""),
        range_text(each.metadata.get("bounds", {})),
        choices,
        place,
        each.metadata.get("later", False),
    )


def range_text(bounds: dict[str, float]) -> str:
    """A range in words: `at least 1`, `in [0, 1)`, `positive`; empty if there is none."""
    least, most, above, below = (bounds.get(key) for key in ("least", "most", "above", "below"))
    low = f"[{least:g}" if least is not None else f"({above:g}" if above is not None else None
    high = f"{most:g}]" if most is not None else f"{below:g})" if below is not None else None
    if low and high:
        return f"in {low}, {high}"
    if least is not None:
        return f"at least {least:g}"
    return "positive" if above == 0 else f"above {above:g}" if above is not None else ""


def check_ranges(config: Any, own: Collection[str] = (), prefix: str = "") -> None:
    """Check every field of a configuration and its sections. Raises UserError naming the key, its value and its range.

    own: names that are known beside those of a group.
    """
    for each in fields(config):
        found, name = getattr(config, each.name), f"{prefix}{each.name}"
        if is_dataclass(found) and not isinstance(found, type):
            check_ranges(found, own, f"{name}.")
            continue
        for inner, one in found.items() if isinstance(found, dict) else ():
            if is_dataclass(one):
                check_ranges(one, own, f"{name}.{inner}.")
        if found is None:
            continue
        group = each.metadata.get("group")
        for one in (found if isinstance(found, list) else [found]) if group else ():
            known = values(group, "name" if isinstance(found, list) else each.name)
            if one not in known and one not in own:
                raise UserError(f"{name}={one} is unknown; choose one of {', '.join(known)}")
        bounds = each.metadata.get("bounds", {})
        if bounds and not _within(found, **bounds):
            raise UserError(f"{name}={found:.9g} must be {range_text(bounds)}")


def reset_idle(config: Any, section: Any = None) -> None:
    """Give every key without effect its default, so that configurations which compute the same are equal. config: a Config, changed in place."""
    section = config if section is None else section
    for each in fields(section):
        found, matters = getattr(section, each.name), each.metadata.get("matters")
        if is_dataclass(found) and not isinstance(found, type):
            reset_idle(config, found)
        elif matters is not None and not matters(config):
            setattr(section, each.name, each.default)


def _within(number: float, least: float = -math.inf, most: float = math.inf, above: float = -math.inf, below: float = math.inf) -> bool:
    return math.isfinite(number) and least <= number <= most and above < number < below
