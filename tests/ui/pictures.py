"""Pictures of pages, for people to look at: MTH_SCREENSHOTS names the folder that keeps them."""

import os
from pathlib import Path


def picture(page, name, **options):
    if folder := os.environ.get("MTH_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", **options)
