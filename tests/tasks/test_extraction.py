r"""The last balanced braced box counts; a mention of `\boxed` is no answer."""

import pytest

from mth.tasks.extraction import BOXED, FBOX, last_boxed


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{12}.", "12"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"The total is \boxed{42}. I wrote it in \boxed as asked.", "42"),
        (r"\boxed{5} then \boxed{6", "5"),
        (r"so \boxed{12}. But \boxed", "12"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n  {x + 1}", "x + 1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}} and more}", r"[0, 1\}"),
        (r"\boxed{1 \\{2}}", r"1 \\{2}"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{a \boxed{b}", "b"),
        (r"\boxed 2$", "2"),
        (r"\boxed 2 or \boxed{3}", "3"),
        (r"\boxedtext{4}", None),
        (r"\fbox{42}", None),
        (r"\boxed{unbalanced", None),
        (r"\boxed{6 of \boxed {7", None),
        ("no box", None),
        (r"\boxed", None),
        ("\\boxed\nas the last word", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


def test_solutions_may_use_fbox():
    assert last_boxed(r"so \fbox{42}", (BOXED, FBOX)) == "42"
    assert last_boxed(r"\boxed{1}, no, \fbox{\frac{1}{2}}", (BOXED, FBOX)) == r"\frac{1}{2}"


def test_many_open_boxes():
    assert last_boxed("\\boxed{" * 50_000 + "7}") == "7"
