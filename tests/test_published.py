"""docs/results: the published runs give the published tables, they are all the cells of the published commands, and the page quotes them."""

import json
import shlex
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mth.analysis.frame import read_frame
from mth.analysis.output import markdown
from mth.analysis.page import report
from mth.config.cells import cells_of
from mth.config.identity import identity

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TABLES = ("masks", "sparsity", "forgetting", "structured", "learning_rates", "overlap", "memory")
FOLDERS = ("arithmetic", "alphabet_sort", "arithmetic_long", "alphabet_sort_long", "smollm2", "reasoning_gym")
STUDIES = (  # folder, what the names of its files begin with, trained task; a folder of several tasks numbers them
    ("arithmetic", "", "arithmetic"),
    ("alphabet_sort", "", "alphabet_sort"),
    ("arithmetic_long", "", "arithmetic"),
    ("alphabet_sort_long", "", "alphabet_sort"),
    ("smollm2", "1_", "multiplication"),
    ("smollm2", "2_", "names"),
)


def blank(figure, file, **options):
    """In place of a figure's `savefig`: no test here looks at a picture, and pictures take a third of the time."""
    Image.new("RGB", (1, 1)).save(file, "PNG")


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_published_frame_gives_the_published_tables(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", blank)
    again = report([str(RESULTS / folder)], tmp_path, None, "pass_at_1", False).parent
    names = sorted(path.name for path in (RESULTS / folder).glob("*.csv") if path.stem.lstrip("123_") in TABLES)
    assert len(names) >= 6
    for name in names:
        published = pd.read_csv(RESULTS / folder / name)
        pd.testing.assert_frame_equal(pd.read_csv(again / name), published, rtol=1e-6, atol=1e-4)
        assert (RESULTS / folder / name).with_suffix(".md").read_text() == markdown(published), name
    assert (again / "settings.csv").read_text() == (RESULTS / folder / "settings.csv").read_text()  # which the notebooks read


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_cell_of_the_published_commands_is_left_out(folder):
    runs = {run.identity: run for run in read_frame(RESULTS / folder).runs}
    commands = [shlex.split(line) for line in (RESULTS / folder / "commands.sh").read_text().splitlines() if "mth.train" in line]
    cells = {identity(cell.config) for command in commands for cell in cells_of(command[3:])}
    assert cells == set(runs)
    assert all(run.done for run in runs.values())


@pytest.mark.parametrize(("folder", "number", "task"), STUDIES)
def test_the_page_quotes_the_tables(folder, number, task):
    own = RESULTS / folder / "README.md"
    page = (own if own.is_file() else RESULTS / "README.md").read_text()
    row = pd.read_csv(RESULTS / folder / f"{number}masks.csv").set_index("task").loc[task]
    assert f"{row['successes']:.0f} of {row['masks']:.0f}" in page
    table = pd.read_csv(RESULTS / folder / f"{number}sparsity.csv")
    for line in table[table["task"] == task].itertuples():
        mean = Decimal(str(line.mean)).quantize(Decimal("0.001"), ROUND_HALF_UP)  # the table has four digits
        assert f"| {mean} |" in page, line
    states = [json.loads(line)["status"] for line in (RESULTS / folder / "runs.jsonl").read_text().splitlines()]
    assert f"{len(states)} runs, {states.count('collapsed')} collapsed" in page
