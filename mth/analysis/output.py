"""Writes the items of a report as files, and tables as Markdown and HTML."""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from mth.analysis.figures.base import Item


def write_item(item: Item, out: Path, prefix: str = "") -> dict[str, Any]:
    """Write the figure as PNG and SVG and the tables as CSV and Markdown; returns what the page's template needs.

    prefix: put before the names of all files.
    """
    name, files, image = f"{prefix}{item.slug}", [], ""
    if item.figure is not None:
        picture = png(item.figure)
        (out / f"{name}.png").write_bytes(picture)
        item.figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        image = base64.b64encode(picture).decode()
        files += [f"{name}.png", f"{name}.svg"]
    if item.table is not None:
        item.table.to_csv(out / f"{name}.csv", index=False)
        (out / f"{name}.md").write_text(markdown(item.table))
        files += [f"{name}.csv", f"{name}.md"]
    for extra, data in item.data.items():
        data.to_csv(out / f"{prefix}{extra}.csv", index=False)
        files.append(f"{prefix}{extra}.csv")
    missing = ""
    if item.need is not None and item.need.missing:
        missing = f"{item.need.missing} of the {len(item.need.cells)} runs of {item.need.experiment} are missing. What is finished is not run again:"
    return {
        "title": item.title,
        "caption": item.caption,
        "image": image,
        "html": "" if item.table is None else html(item.table),
        "missing": missing,
        "command": item.need.command if item.need else "",
        "advice": item.advice,
        "files": files,
    }


def png(figure: Figure) -> bytes:
    """A figure as a PNG with a palette of 256 colours, a third of the size of a PNG without one."""
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=130)
    with Image.open(whole) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def cell_text(value: Any) -> str:
    """A cell as text: counts with thousands separators, other numbers with at most six digits, None and NaN as nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += [[cell_text(value).replace("|", "\\|") for value in row] for row in table.astype(object).itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def html(table: pd.DataFrame) -> str:
    """A table in HTML."""
    return str(table.astype(object).map(cell_text).to_html(index=False, border=0))
