"""Configurations as plain data: from Hydra, to and from JSON-able data, to and from YAML files."""

from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mth.config.schema import Config
from mth.foundations.errors import UserError, first_line, require

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_BYTES, MAX_DEPTH = 2**20, 20  # of a configuration
MARK = "\ufdd2"  # between `$` and `{` while OmegaConf reads; Unicode reserves it for such uses


def load(cfg: DictConfig | ListConfig) -> Any:
    """A validated Config (or PretrainConfig) from a composed one. Raises UserError with one line for anything wrong in it."""
    refuse_unknown(cfg)
    return to_object(cfg)


def refuse_unknown(cfg: DictConfig | ListConfig) -> None:
    """Raises UserError for a key that the schema does not have: `+new=1` gets past Hydra."""
    kind: Any = OmegaConf.get_type(cfg)
    try:
        OmegaConf.merge(_structured(kind), OmegaConf.to_container(cfg))
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error


def to_object(cfg: DictConfig | ListConfig) -> Any:
    """The dataclass of a composed configuration that has no unknown keys. Raises UserError for values that do not fit."""
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-able data, enums by name."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.name if isinstance(value, Enum) else value

    return plain(asdict(config))


def from_plain(data: Any) -> Config:
    """The inverse of `to_plain`. Raises UserError for a key that this version does not know and for a value out of range."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_structured(Config), literal(data)))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"stored configuration does not fit this version of mth: {first_line(error)}") from error
    assert isinstance(config, Config)
    return cast(Config, literal(config, mark=""))


def literal(value: Any, mark: str = MARK) -> Any:
    """Plain data or a dataclass in which OmegaConf takes `${` as text, or the same as it was, with mark="".

    What a file holds is never interpolated: it could read an environment variable. OmegaConf's own escapes do not reach an open `${`.
    """
    if isinstance(value, dict):
        return {key: literal(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item, mark) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            object.__setattr__(value, field.name, literal(getattr(value, field.name), mark))
        return value
    if not isinstance(value, str):
        return value
    return value.replace("${", f"${mark}{{") if mark else value.replace(f"${MARK}{{", "${")


@cache
def _structured(kind: Any) -> DictConfig:
    """OmegaConf's form of a dataclass, which takes about 30 ms to make."""
    return OmegaConf.structured(kind)


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def nested(data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, but for sections that hold nothing."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        *parents, last = key.split(".")
        place = result
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def to_yaml(config: Config) -> str:
    """A configuration as the YAML that a run folder keeps."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain data of a stored configuration, not validated. Raises UserError if the file is missing or damaged.

    A file that would take long to read, or end the process, is damaged too: a large one, a deeply nested one, one with aliases.
    """
    require(path.is_file(), f"{path} does not exist: not a run folder of mth?")
    try:
        require(path.stat().st_size <= MAX_BYTES, f"{path} is damaged (a configuration has less than {MAX_BYTES:,} bytes)")
        text, depth = path.read_text(), 0
        for event in yaml.parse(text, LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            require(depth <= MAX_DEPTH, f"{path} is damaged (it is nested deeper than {MAX_DEPTH} levels)")
            require(not isinstance(event, yaml.AliasEvent), f"{path} is damaged (it holds the alias *{getattr(event, 'anchor', '')})")
        data = yaml.load(text, LOADER)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)})") from error
    require(isinstance(data, dict), f"{path} is damaged (it holds no keys)")
    return data


def read_config(path: Path) -> Config:
    """The configuration that a run folder keeps in `config.yaml`. Raises UserError as `read_yaml` and `from_plain` do."""
    return from_plain(read_yaml(path))
