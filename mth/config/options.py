"""What the files in conf/ offer: the options of each group, and the values that they give a key."""

import re
from functools import cache

from mth.foundations.paths import conf_dir


@cache
def options(group: str) -> tuple[str, ...]:
    """Names of the files in conf/<group>/."""
    return tuple(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))


@cache
def values(group: str, key: str) -> tuple[str, ...]:
    """Values that a key has in the files of conf/<group>/, without repeats."""
    texts = (path.read_text() for path in (conf_dir() / group).glob("*.yaml"))
    return tuple(sorted({found for text in texts for found in re.findall(rf"^{key}: *(\S+)", text, re.MULTILINE)}))


@cache
def groups() -> tuple[str, ...]:
    """Names of all groups that a user chooses from, `hydra/launcher` included."""
    names = [path.name for path in conf_dir().iterdir() if path.is_dir() and path.name not in ("hydra", "recipe", "published")]
    return (*sorted(names), "hydra/launcher")
