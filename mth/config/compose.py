"""Composes configurations with Hydra's public interface: schemas, one call that composes, Hydra's errors in one line."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from mth.config.launchers import LAUNCHERS
from mth.config.overrides import MIXTURE, rewrite_numbers
from mth.config.pretrain_schema import PretrainConfig
from mth.config.schema import Config
from mth.config.typed_values import no_such_key, unreadable
from mth.config.user_code import offered
from mth.foundations.errors import UserError
from mth.foundations.paths import conf_dir


@dataclass
class GridSweeper:
    """Hydra's `sweeper` node of a grid. params: a sweep that an experiment file sets."""

    _target_: str = "hydra_plugins.mth_launcher.GridSweeper"
    params: dict[str, str] | None = field(default_factory=dict)


def register_schemas() -> None:
    """Make the dataclass schemas known to Hydra under the names that the files in conf/ use."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="pretrain_schema", node=PretrainConfig)
    for name, launcher in LAUNCHERS.items():
        store.store(group="hydra/launcher", name=f"{name}_schema", node=launcher)
    store.store(group="hydra/sweeper", name="checked", node=GridSweeper)


def register_offered(overrides: Sequence[str]) -> None:
    """Make tasks and masks of installed packages known to Hydra that these overrides choose. Raises UserError for a name that exists."""
    for (group, name), node in offered(list(overrides)).items():
        ConfigStore.instance().store(group=group, name=name, node=node)


def explain(error: Exception) -> str:
    """One line for what Hydra says in many; a key that does not exist comes with the nearest one that does."""
    text = " ".join(str(error).split("Config search path:")[0].split())
    if isinstance(error, OverrideParseException) and "=" in error.override:
        key, _, value = error.override.partition("=")
        return unreadable(key, value)
    cause = str(error.__cause__ or "").split("\n")[0]
    if "Config group override must be" in text:
        return MIXTURE
    unknown = re.search(r"Could not override '([\w.]+)'|Key '(\w+)' not in", text)
    if unknown is not None:
        return no_such_key(unknown[1] or unknown[2])
    if (missing := re.search(r"Interpolation key '([\w.]+)' not found", text)) is not None:
        shell = f'; the shell fills in its variable between double quotes: "${{{missing[1]}}}"' if missing[1] in os.environ else ""
        return f"${{{missing[1]}}}: there is no key {missing[1]}{shell}"
    text = text.removeprefix("Error merging override ")
    return f"{text}: {cause}" if cause and cause not in text else text


@contextmanager
def composer() -> Iterator[None]:
    """Within, `hydra.compose` reads conf/; also inside a launcher, where another Hydra is at work. Hydra's errors become UserError."""
    register_schemas()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def compose_all(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The configuration that these overrides give, with Hydra's own node. Call it within `composer`.

    `run_dir` is null unless it is given: its default holds the time, which no identity and no stored configuration may depend on.
    """
    register_offered(overrides)
    pinned = ["run_dir=null"] if config_name == "config" and not any(o.startswith("run_dir=") for o in overrides) else []
    return hydra.compose(config_name, [*pinned, *overrides], return_hydra_config=True)


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The configuration that these overrides give. Raises UserError for a bad override."""
    with composer():
        cfg = compose_all(rewrite_numbers(list(overrides)), config_name)
        return without_hydra(cfg)


def without_hydra(cfg: DictConfig) -> Any:
    """The configuration alone, without Hydra's own node."""
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg
