"""Paths of the files that the package ships: configuration, the embedded model, architectures, name lists."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
TINY_MODEL = ASSETS / "tiny"


def conf_dir() -> Path:
    """The Hydra configuration folder: `mth/conf` in an installed wheel, the top-level `conf/` in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"
