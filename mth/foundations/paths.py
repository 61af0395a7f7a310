"""Paths: of the files that the package ships (configuration, the embedded model, architectures, name lists), and one spelling for those of a user."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
TINY_MODEL = ASSETS / "tiny"


def one_spelling(source: str | None) -> str | None:
    """The absolute path of a file or folder, with `~` expanded; a hub id, and a name of which nothing exists here, as it is.

    Links are not followed: a file of the hub's cache has its suffix only in the name of its link.
    """
    if source is None or not (source.startswith((".", os.sep, "~")) or os.path.exists(source)):
        return source
    return os.path.abspath(os.path.expanduser(source))


def conf_dir() -> Path:
    """The Hydra configuration folder: `mth/conf` in an installed wheel, the top-level `conf/` in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"
