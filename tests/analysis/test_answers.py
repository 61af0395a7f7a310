"""The sentences of a report, from made-up numbers whose right answers are known."""

import math

import pandas as pd
import pytest

from mth.analysis.answers import answers
from mth.analysis.levels import COLUMNS

NAN = float("nan")


def level(sparsity, **known):
    """A row of `levels` on the trained task; what is not given is not known."""
    row = dict.fromkeys(COLUMNS, NAN) | {"task": "sums", "trained": True, "sparsity": sparsity, "rate": 1e-3, "tried": (1e-3,)}
    return (
        row
        | {"runs": 5, "collapsed": 0, "mean": 0.9, "std": 0.01, "error": 0.01, "before": 0.5, "change": 0.4, "change error": 0.02}
        | known
    )


FULL = level(0.0, runs=1, std=NAN, rate=1e-4, tried=(3e-5, 1e-4, 3e-4))
NEAR = level(99.0, runs=20, mean=0.895, rate=1e-3, tried=(3e-4, 1e-3, 3e-3)) | {
    "to full": -0.005,
    "to full error": 0.008,
    "successes": 19,
    "threshold": 0.89,
}
LOST = level(99.9, mean=0.7, change=0.2, rate=1e-2, tried=(3e-3, 1e-2, 3e-2)) | {
    "to full": -0.2,
    "to full error": 0.03,
    "successes": 0,
    "threshold": 0.89,
}
NOTHING = level(99.99, mean=0.51, change=0.01, rate=3e-2, tried=(1e-2, 3e-2)) | {
    "to full": -0.39,
    "to full error": 0.03,
    "successes": 0,
    "threshold": 0.89,
}


def texts(*rows):
    return [answer.text for answer in answers(pd.DataFrame(rows, columns=list(COLUMNS)), "pass@1")]


def other(row, **known):
    return row | {"task": "names", "trained": False} | known


def test_masks_that_reach_full_training_and_a_level_that_is_lost():
    full, masks, down, rates, only = texts(FULL, NEAR, LOST, NOTHING)
    assert (
        full == "Full training gains 0.400 ± 0.020 in pass@1 on sums, from 0.500 to 0.900 (one run, so its spread over seeds is not known)."
    )
    assert masks == (
        "19 of 20 random masks at 99 % reach full training minus one std of the masks (0.890). "
        "On average they end within the error of full training (-0.005 ± 0.008)."
    )
    assert down == (
        "Down to 99 % no level is below full training beyond its error. Within their error of it: 99 % -0.005 ± 0.008. "
        "Below it: 99.9 % by 0.200 ± 0.030, 99.99 % by 0.390 ± 0.030. No gain beyond its error: 99.99 % +0.010 ± 0.020."
    )
    assert rates == (
        "The best learning rate grows with sparsity: 0.0001 for full training, 0.001 at 99 %, 0.01 at 99.9 %. The rates that were tried are a "
        "factor of 3 to 3.3 apart. Left out, for lack of a gain or of a second rate: 99.99 %."
    )
    assert only == "Only sums was evaluated, so what training forgets was not measured."


def test_a_difference_counts_beyond_two_standard_errors_only():
    clear = NEAR | {"to full": -0.017}
    assert texts(FULL, clear)[1].endswith("On average they end 0.017 ± 0.008 below full training.")
    assert texts(FULL, NEAR | {"to full": -0.016})[1].endswith("within the error of full training (-0.016 ± 0.008).")
    assert texts(FULL, NEAR | {"to full": 0.017})[1].endswith("0.017 ± 0.008 above full training.")
    assert "Every level is below full training: 99 % by 0.017 ± 0.008, 99.9 % by 0.200 ± 0.030." in texts(FULL, clear, LOST)
    assert texts(FULL, clear, NEAR | {"sparsity": 99.5})[2].startswith("Already the least sparse level, 99 %, is below full training.")
    assert texts(FULL, NEAR, NEAR | {"sparsity": 99.5})[2].startswith("Down to 99.5 % no level is below full training beyond its error.")


def test_full_training_with_several_seeds_has_a_spread():
    assert "(5 training seeds, std 0.012)" in texts(FULL | {"runs": 5, "std": 0.012}, NEAR)[0]


def test_full_training_that_learned_nothing():
    assert "changes pass@1 on sums by +0.010 ± 0.020 (within its error)" in texts(FULL | {"change": 0.01})[0]


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ((1e-4, 1e-3, 1e-2), "grows with sparsity"),
        ((1e-3, 1e-3, 1e-3), "is the same at every sparsity"),
        ((1e-4, 1e-2, 1e-3), "does not grow steadily with sparsity"),
    ],
)
def test_the_rate_by_sparsity(rates, verdict):
    rows = [row | {"rate": rate, "tried": (rate / 3, rate, rate * 3)} for row, rate in zip((FULL, NEAR, LOST), rates, strict=True)]
    assert texts(*rows)[3].startswith(f"The best learning rate {verdict}: ")


def test_a_best_rate_at_the_edge_of_what_was_tried_is_named():
    text = texts(FULL, NEAR | {"tried": (3e-4, 1e-3)}, LOST | {"tried": (1e-2, 3e-2)})[3]
    assert "The best is the highest that was tried for 99 %, so higher ones may be better." in text
    assert "The best is the lowest that was tried for 99.9 %, so lower ones may be better." in text


def test_rates_that_were_not_varied_prove_nothing():
    text = texts(FULL | {"tried": (1e-4,)}, NEAR | {"tried": (1e-3,)}, LOST | {"tried": (1e-2,)})[3]
    assert text.startswith("The learning rates are 0.0001 for full training, 0.001 at 99 %, 0.01 at 99.9 %.")
    assert "not measured" in text


def test_forgetting_against_full_training():
    rows = [
        other(FULL, change=-0.041),
        other(NEAR, change=-0.05) | {"to full": -0.009, "to full error": 0.008},
        other(LOST, change=-0.2) | {"to full": -0.16, "to full error": 0.02},
    ]
    assert texts(FULL, NEAR, LOST, *rows)[4] == (
        "names was not trained. Full training changes it by -0.041 ± 0.020. Sparse runs end lower than full training: 99.9 % by 0.160 ± 0.020. "
        "Within their error of it: 99 % -0.009 ± 0.008."
    )
    assert "No sparse level ends lower than full training beyond its error." in texts(FULL, NEAR, *rows[:2])[3]


def test_what_is_missing_is_said_or_left_out():
    assert texts() == []
    masks, forgotten = texts(
        NEAR | {"to full": NAN, "to full error": NAN}, other(NEAR, change=-0.05) | {"to full": NAN, "to full error": NAN}
    )
    assert (
        masks
        == "20 random masks at 99 % end at pass@1 0.895 ± 0.010 on average. Full training is not among the runs, so there is nothing to compare with."
    )
    assert forgotten == "names was not trained. Change by training: 99 % -0.050 ± 0.020."
    assert len(texts(FULL)) == 2  # full training alone
    assert "One random mask at 99 % ends at" in texts(NEAR | {"runs": 1, "to full": NAN, "to full error": NAN})[0]
    assert "The one random mask at 99 % ends at pass@1 0.895 ± 0.010, 0.100 ± 0.008 below full training." in texts(
        FULL, NEAR | {"runs": 1, "to full": -0.1}
    )
    assert "was evaluated only once in a run" in texts(FULL, other(FULL, change=NAN))[1]


def test_errors_that_are_not_known_give_no_verdict():
    blind = {"to full error": NAN, "change error": NAN, "error": NAN}
    found = texts(FULL | blind, NEAR | blind, LOST | blind, other(FULL | blind), other(LOST | blind))
    assert "+0.400 (error not known)" in found[0]
    assert "they end -0.005 from full training (the error is not known)" in found[1]
    assert found[2].startswith("Against full training: 99 % -0.005, 99.9 % -0.200. The errors are not known")
    assert not any(math.nan is word or "nan" in word.split() for text in found for word in [text])


def test_collapsed_masks_are_counted():
    assert texts(FULL, NEAR | {"collapsed": 2})[1].endswith("2 of them collapsed.")
