"""The figures of the report, one file each: its numbers, drawing and caption, and the experiment it belongs to.

A file is found by its FIGURE. It may use all of `mth.analysis` except the page, and no other figure.
"""

import importlib
import pkgutil
from functools import cache

from mth.analysis.figures.base import FigureSpec


@cache
def figures() -> tuple[FigureSpec, ...]:
    """All figures in their order on the page."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return tuple(sorted((module.FIGURE for module in modules if hasattr(module, "FIGURE")), key=lambda figure: figure.position))
