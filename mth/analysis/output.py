"""Writes the items of a report as files, and tables as Markdown and HTML."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from mth.analysis.figures.base import UNROUNDED, Item
from mth.foundations.statistics import plus_minus

SIGNIFICANT = 4  # digits of the largest number of a column
SPAN = 1e5  # largest to smallest number of a column, above which it has no common decimals


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
    gaps = []
    if item.need is not None and item.need.missing:
        missing, cells = item.need.missing, len(item.need.cells)
        which = f"{missing} of the {cells} runs" if cells > 1 else "The run"
        text = f"{which} of {item.need.experiment} {'is' if missing == 1 else 'are'} missing. What is finished is not run again:"
        gaps.append({"title": item.title, "text": text, "command": item.need.command})
    if item.advice[1]:
        gaps.append({"title": item.title, "text": item.advice[0], "command": "\n".join(item.advice[1])})
    return {
        "slug": item.slug,
        "title": item.title,
        "caption": item.caption,
        "image": image,
        "html": "" if item.table is None else html(item.table),
        "gaps": gaps,
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


def result_text(result: tuple[float, float]) -> str:
    """A result and its standard error, which may be NaN, as `0.855 ± 0.022`."""
    value, error = result
    return plus_minus(value, error)


def unbroken(text: str) -> str:
    """A sentence whose numbers no line break parts from their errors and units."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as text. The numbers of a column have the same decimals, except for labels such as a learning rate."""
    return pd.DataFrame({name: _column_texts(str(name), table[name].astype(object).tolist()) for name in table.columns})


def _column_texts(name: str, values: list[Any]) -> list[str]:
    numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    digits = None if name in UNROUNDED else _decimals(numbers)
    if digits is None:
        return [cell_text(value) for value in values]
    return [f"{value:,.{digits}f}" if isinstance(value, float) and math.isfinite(value) else cell_text(value) for value in values]


def _decimals(numbers: Sequence[float]) -> int | None:
    """Decimals that all numbers of a column get: as many as one needs, but no more than show SIGNIFICANT digits of the largest and two of the
    smallest.

    None if the numbers are of very different sizes.
    """
    sizes = [abs(number) for number in numbers if number]
    if not sizes or max(sizes) > SPAN * min(sizes):
        return None if sizes else 0
    needed = max(len(f"{size:.6g}".partition(".")[2]) if size < 1e6 else 0 for size in sizes)
    wanted = max(SIGNIFICANT - 1 - math.floor(math.log10(max(sizes))), 1 - math.floor(math.log10(min(sizes))))
    return max(0, min(needed, wanted))


def markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += [[value.replace("|", "\\|") for value in row] for row in texts(table).itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def html(table: pd.DataFrame) -> str:
    """A table in HTML."""
    return str(texts(table).to_html(index=False, border=0))
