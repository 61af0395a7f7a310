"""The page of one run in a real browser: curves that are hovered and zoomed, samples that are chosen, and texts that stay texts."""

from dataclasses import replace

import pytest

from mth.analysis.run_page import run_page
from tests.pages import SAMPLE, add_samples, eval_samples, make_run
from tests.ui.pictures import picture

WILD = "</pre></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> &lt;i&gt; <!-- {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("page") / "run")
    evaluations = [one for step in (0, 2, 4, 6) for one in eval_samples(step, step / 6, 0.5, 0.0, *[1.0] * 27)]
    trained = replace(SAMPLE, step=3, kind="train", uid="t1", prompt="to train", turns=["trained"], reward=0.25, stop="cut")
    wild = replace(
        SAMPLE, step=5, kind="train", uid=WILD, task=WILD, prompt=WILD, turns=[WILD, WILD, "last"], scores={WILD: 1.0}, truth=[WILD]
    )
    add_samples(run, [*evaluations, trained, wild])
    return run_page(run).as_uri()


@pytest.fixture
def opened(page, url):
    """The page as it is when it is opened. Afterwards: it asked for nothing but itself, and its script had no error."""
    asked, said = [], []
    page.set_viewport_size({"width": 1400, "height": 950})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.goto("about:blank")
    page.goto(url)
    yield page
    assert set(asked) <= {url, "about:blank"} and said == []


def chart(page, title):
    return page.locator(".chart", has=page.get_by_role("heading", name=title, exact=True))


def at(plot, page, share):
    """A place on a chart, at this share of its steps."""
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    return box["x"] + 50 + share * (box["width"] - 62), box["y"] + 90


def test_hovering_shows_the_values_of_a_step_in_every_chart(opened):
    reward, accuracy = chart(opened, "Reward"), chart(opened, "pass@1 on evaluation prompts")
    assert reward.locator(".legend").inner_text().startswith("training 0.3")
    opened.mouse.move(*at(reward.locator("svg"), opened, 2 / 6))
    assert reward.locator(".legend button").all_inner_texts() == ["training 0.1", "evaluation, arithmetic 0.200 ± 0.061"]
    assert accuracy.locator(".legend").inner_text() == "arithmetic 0.200 ± 0.061"
    opened.mouse.move(*at(reward.locator("svg"), opened, 3 / 6))
    assert accuracy.locator(".legend").inner_text() == "arithmetic 0.200 ± 0.061 (step 2)"
    assert chart(opened, "Seconds per phase").locator("path").count() == 3


def test_a_drag_zooms_every_chart_and_a_double_click_goes_back(opened):
    def steps_shown():
        return [plot.locator("text[text-anchor=middle]").all_text_contents() for plot in opened.locator("#charts svg").all()]

    whole = steps_shown()
    plot = chart(opened, "Reward").locator("svg")
    opened.mouse.move(*at(plot, opened, 0.3))
    opened.mouse.down()
    opened.mouse.move(*at(plot, opened, 0.9), steps=3)
    opened.mouse.up()
    assert opened.locator("#zoom").inner_text() == "steps 2 to 5: show all"
    picture(opened, "run-page-zoomed")
    assert steps_shown() == [["2", "3", "4", "5"]] * 4
    opened.mouse.dblclick(*at(plot, opened, 0.5))
    assert steps_shown() == whole and opened.locator("#zoom").is_hidden()
    plot.focus()
    for key in ("ArrowLeft", "ArrowLeft", "+"):
        opened.keyboard.press(key)
    assert opened.locator("#zoom").is_visible()
    opened.keyboard.press("Escape")
    assert steps_shown() == whole


def test_a_click_on_a_step_chooses_its_samples(opened):
    opened.mouse.click(*at(chart(opened, "Reward").locator("svg"), opened, 2 / 6))
    assert opened.locator("#picked").inner_text() == "samples of step 2"
    assert opened.locator("article").first.inner_text().splitlines()[:2] == ["0.333", "step 2 · evaluation · arithmetic · p1"]


def test_samples_are_chosen_by_step_reward_and_text(opened):
    cards = opened.locator("article")
    assert opened.locator("#found").inner_text() == "30 replies, mean reward 0.950"
    assert cards.count() == 20
    opened.locator("#more-samples").click()
    assert cards.count() == 30
    opened.get_by_role("button", name="wrong").click()
    assert cards.count() == 1 and "p3" in cards.inner_text()
    opened.locator("#by-from").fill("0.4")
    opened.locator("#by-to").fill("0.6")
    assert cards.count() == 1 and "answer 6.2" in cards.inner_text()
    opened.get_by_role("button", name="any").click()
    opened.locator("#earlier").click()
    assert opened.locator("#by-step").input_value() == "4"
    opened.locator("#by-order").select_option("worst")
    assert cards.locator(".reward").all_inner_texts()[:4] == ["0.000", "0.500", "0.667", "1.000"]
    opened.locator("#by-step").select_option("")
    opened.locator("#by-kind").select_option("train")
    opened.locator("#by-text").fill("trained")
    assert cards.count() == 1 and "cut off" in cards.inner_text()


def test_one_prompt_is_followed_through_training(opened):
    opened.locator("article").first.get_by_role("button", name="follow this prompt").click()
    cards = opened.locator("article")
    assert cards.locator(".reward").all_inner_texts() == ["0.000", "0.333", "0.667", "1.000"]
    assert [f"answer {step}.1" in card.inner_text() for step, card in zip((0, 2, 4, 6), cards.all(), strict=True)] == [True] * 4
    assert opened.locator("#followed pre").all_inner_texts() == ["question 1", "truth 1"]
    assert chart(opened, "Reward of this prompt").locator("circle").count() == 4
    picture(opened, "run-page-followed")
    opened.get_by_role("button", name="all samples").click()
    assert opened.locator("article").count() == 20


def test_what_a_model_wrote_shows_as_text(opened):
    opened.locator("#by-kind").select_option("train")
    opened.locator("#by-step").select_option("5")
    card = opened.locator("article")
    assert card.locator("pre").all_text_contents() == [WILD, WILD, WILD, "last", WILD]
    assert f"train · {WILD}".replace("train", "training") in card.text_content()
    card.get_by_role("button").click()
    assert opened.locator("#followed pre").all_text_contents() == [WILD, WILD] and WILD in opened.locator("#whom").text_content()
    assert opened.locator("img, main script, article b, #followed b, option b").count() == 0
    assert opened.title() == "tiny-arithmetic-s99-m0-lr0.005"


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk(opened, width, scheme):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 900})
    opened.locator("#more summary").click()
    opened.locator("#more-charts svg path.line").first.wait_for(state="attached")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    picture(opened, f"run-page-{width}-{scheme}", full_page=True)
