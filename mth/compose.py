"""Composing configurations with Hydra: the schema store, numbers given to groups, what Hydra says in one line."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mth.config import NUMBER_GROUPS, Config, PretrainConfig, flat, rewrite_numbers, to_plain
from mth.errors import UserError
from mth.launchers import LAUNCHERS
from mth.paths import conf_dir

MIXTURE = f"sparsity=, lr= and seed= take numbers or a word, not a mixture; give {', '.join(f'{key}=' for key in NUMBER_GROUPS.values())}"


def register_schemas() -> None:
    """Make the dataclass schemas known to Hydra under the names that the files in conf/ use."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="pretrain_schema", node=PretrainConfig)
    for name, launcher in LAUNCHERS.items():
        store.store(group="hydra/launcher", name=f"{name}_schema", node=launcher)
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf

    store.store(group="hydra/sweeper", name="checked", node=BasicSweeperConf(_target_="hydra_plugins.mth_launcher.CheckedSweeper"))


def explain(error: Exception) -> str:
    """One line for what Hydra says in many; a key that does not exist comes with the nearest one that does."""
    text = " ".join(str(error).split("Config search path:")[0].split())
    cause = str(error.__cause__ or "").split("\n")[0]
    if "Config group override must be" in text:
        return MIXTURE
    unknown = re.search(r"Could not override '([\w.]+)'|Key '(\w+)' not in", text)
    if unknown is not None:
        near = difflib.get_close_matches(unknown[1] or unknown[2], flat(to_plain(Config())), n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all keys"
        return f"{unknown[1] or unknown[2]}: there is no such key; {hint}"
    return f"{text}: {cause}" if cause and cause not in text else text


@contextmanager
def hydra_session() -> Iterator[Any]:
    """Hydra's composer over conf/, without running anything; also from within a launcher, where another Hydra is at work."""
    register_schemas()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield GlobalHydra.instance().hydra
    finally:
        GlobalHydra.instance().hydra = outer


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The configuration that these command-line overrides give, without running anything. Raises UserError for a bad override."""
    pinned = ["run_dir=null"] if config_name == "config" and not any(o.startswith("run_dir=") for o in overrides) else []
    try:
        with hydra_session():
            return hydra.compose(config_name, [*pinned, *rewrite_numbers(list(overrides))])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error)) from error
