"""The report's page in a real browser: its table is sorted and filtered, its curves are drawn, at the width of a desk and of a phone."""

import os
from pathlib import Path

import pytest

from mth.analysis.collection import Collection
from mth.analysis.page import render, settings_of
from tests.made_up import config_of, made_run

SCRIPT = "<script>document.title = 'taken'</script>"
TASKS = ["arithmetic", "names", "addition", "alphabet_sort"]


def picture(page, name):
    if folder := os.environ.get("MTH_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of ten runs without figures: full training with two seeds, five masks, one of them collapsed, three at another sparsity."""
    base = config_of("model=tiny", "task=arithmetic", f"eval.tasks=[{','.join(TASKS)}]", "eval.samples=100")
    others = dict.fromkeys(TASKS[1:], 0.4)
    runs = [made_run(base, {"arithmetic": 0.9 + 0.02 * seed} | others, 0.0, train_seed=seed, lr=1e-4) for seed in (0, 1)]
    runs += [made_run(base, {"arithmetic": 0.80 + 0.01 * seed} | others, 99.0, mask_seed=seed) for seed in range(4)]
    runs += [made_run(base, {"arithmetic": 0.60 + 0.01 * seed} | others, 99.9, mask_seed=seed) for seed in range(3)]
    runs.append(made_run(base, {"arithmetic": 0.1} | others, 99.0, mask_seed=4, status="collapsed"))
    runs[-1].name, runs[-1].reason = f"strange {SCRIPT}", f'"{SCRIPT}'
    runs[0].path = tmp_path_factory.mktemp("run")
    (runs[0].path / "page.html").write_text("the page of a run")
    out = tmp_path_factory.mktemp("report")
    text = render(Collection(f"a folder {SCRIPT}", runs), settings_of(runs, "pass_at_1"), [], out)
    (out / "index.html").write_text(text)
    return (out / "index.html").as_uri()


@pytest.fixture
def shown(page, address):
    """The page, freshly loaded; no error of its script and no request for anything else passes."""
    faults, asked = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 1400, "height": 950})
    page.goto(address)
    yield page
    assert faults == []
    assert all(url.startswith("file:") for url in asked)


def visible(page, column=0):
    """Texts of a column of the rows that are shown, in order."""
    rows = page.locator("#runs-table tbody tr:not([hidden])")
    return [rows.nth(number).locator("td").nth(column).inner_text() for number in range(rows.count())]


def test_columns_sort_in_both_directions_and_as_numbers(shown):
    shown.get_by_role("button", name="arithmetic", exact=True).click()  # a result: the best one first
    values = [float(text.split()[0]) for text in visible(shown, 2)]
    assert values == sorted(values, reverse=True) and values[0] == 0.92
    shown.get_by_role("button", name="arithmetic", exact=True).click()
    assert [float(text.split()[0]) for text in visible(shown, 2)] == values[::-1]
    shown.locator("#sort").select_option(label="sparsity, descending")
    headings = shown.locator("#runs-table th button").all_inner_texts()
    assert visible(shown, headings.index("sparsity")) == ["99.9"] * 3 + ["99"] * 5 + ["0"] * 2


def test_filters_take_words_settings_and_choices(shown):
    count = shown.locator("#count")
    assert count.inner_text() == "10 of 10 runs"
    for text, expected in (
        ("sparsity=99", 5),
        ("sparsity.percent=99.90 mask_seed=1", 1),
        ("collapsed", 1),
        ("train.steps=20", 10),
        ("train.steps=21", 0),
        ("nothing", 0),
        ("", 10),
    ):
        shown.locator("#filter").fill(text)
        assert count.inner_text() == f"{expected} of 10 runs", text
    shown.locator("#picks label", has_text="state").locator("select").select_option("collapsed")
    assert len(visible(shown)) == 1


def test_curves_have_one_line_and_band_per_group_of_any_setting(shown):
    def legend():
        return shown.locator("#legend > span").all_inner_texts()

    assert legend() == ["full training (2)", "random, 99 % (5)", "random, 99.9 % (3)"]
    picture(shown, "report-curves")
    shown.locator("#group").select_option("mask_seed")
    assert legend() == ["0 (4)", "1 (2)", "2 (2)", "3 (1)", "4 (1)"]
    shown.locator("#filter").fill("sparsity=99")
    assert legend() == ["0 (1)", "1 (1)", "2 (1)", "3 (1)", "4 (1)"]
    shown.locator("#metric").select_option("eval/names/pass_at_1")
    assert shown.locator("#curves polyline").count() == shown.locator("#curves polygon").count() == 5
    ticks = [float(text) for text in shown.locator("#curves text[text-anchor=middle]").all_text_contents() if text != "optimizer step"]
    assert ticks and all(tick.is_integer() for tick in ticks)
    shown.locator("#filter").fill("nothing")
    assert shown.locator("#curves-note").inner_text() == "No run that is shown has this metric."


def test_the_pointer_reads_mean_and_spread(shown):
    box = shown.locator("#curves svg").bounding_box()
    shown.mouse.move(box["x"] + box["width"] - 20, box["y"] + 100)
    tip = shown.locator("#tip").inner_text().splitlines()
    assert tip[0] == "step 20"
    assert tip[1] == "full training (2): 0.910, std 0.014"  # 0.90 and 0.92
    assert tip[3] == "random, 99.9 % (3): 0.610, std 0.010"
    shown.locator("#filter").fill("collapsed")
    shown.mouse.move(box["x"] + box["width"] - 21, box["y"] + 100)
    assert shown.locator("#tip").inner_text().splitlines()[1] == "random, 99 % (1): 0.100 ± 0.030"  # a single run: its standard error


def test_what_runs_are_called_is_text_and_their_pages_are_linked(shown):
    assert shown.title() == f"mth report: a folder {SCRIPT}"
    assert f"strange {SCRIPT}" in visible(shown)
    shown.locator("#runs-table td.run a").click()
    assert shown.locator("body").inner_text() == "the page of a run"


@pytest.mark.parametrize("width", [1400, 390])
def test_results_are_visible_at_any_width(shown, width):
    shown.set_viewport_size({"width": width, "height": 900})
    shown.locator("#runs").scroll_into_view_if_needed()
    picture(shown, f"report-runs-{width}")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    results = shown.locator("#runs-table tbody tr").first.locator("td.result")
    assert results.count() == 4
    for number in range(4):
        box = results.nth(number).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    if width == 390:
        assert shown.locator("#sort").is_visible()  # the headings, which sort at a desk, are hidden
