"""Both graders, on the real GSM8K gold answers (openai/grade-school-math, MIT) and on hard cases."""

import os
import sys
import time
from pathlib import Path

import pytest

from mth.foundations.errors import UserError
from mth.tasks.graders import MathVerifier, math_verify, strict

GOLD = (Path(__file__).parents[1] / "data" / "gsm8k_test_gold.txt").read_text().split()


def test_both_graders_accept_every_gold_answer_and_reject_its_successor():
    assert len(GOLD) == 1319
    for raw in GOLD:
        gold = raw.replace(",", "")
        reply = rf"The answer is \boxed{{{gold}}}."
        wrong = rf"\boxed{{{gold}1}}"
        assert (strict(reply, gold), strict(wrong, gold)) == (1.0, 0.0)
        assert (math_verify(reply, gold, 10.0), math_verify(wrong, gold, 10.0)) == (1.0, 0.0), gold


def test_graders_differ_where_they_should():
    assert (strict(r"\boxed{0.5}", r"\frac{1}{2}"), math_verify(r"\boxed{0.5}", r"\frac{1}{2}", 10.0)) == (0.0, 1.0)
    assert math_verify(r"\boxed{x^2+2x+1}", r"(x+1)^2", 10.0) == 1.0
    assert math_verify("0.5 without a box", "0.5", 10.0) == 0.0
    assert math_verify(r"\boxed{\frac{}", "3", 10.0) == 0.0


def test_a_hanging_parse_is_killed_and_the_next_answer_graded():
    worker = (
        "import sys, time\nprint('ready', flush=True)\nfor line in sys.stdin:\n  time.sleep(60) if 'hang' in line else print(1, flush=True)"
    )
    verifier = MathVerifier((sys.executable, "-c", worker))
    assert verifier.grade(r"\boxed{1}", "1", 5.0) == 1.0
    start = time.monotonic()
    process = verifier.process
    assert verifier.grade(r"\boxed{hang}", "1", 0.5) == 0.0
    assert time.monotonic() - start < 10
    assert process.poll() is not None
    assert verifier.grade(r"\boxed{1}", "1", 5.0) == 1.0
    verifier.close()


def test_a_worker_that_cannot_start_is_an_error_not_a_zero():
    with pytest.raises(UserError, match="does not start"):
        MathVerifier((sys.executable, "-c", "raise SystemExit(1)")).grade(r"\boxed{1}", "1", 5.0)


def test_the_worker_survives_a_signal_to_our_group():
    verifier = MathVerifier()
    assert verifier.grade(r"\boxed{1}", "1", 20.0) == 1.0
    assert os.getpgid(verifier.process.pid) != os.getpgid(0)
    verifier.close()


def test_an_expression_that_sympy_cannot_finish_scores_zero():
    start = time.monotonic()
    assert math_verify(r"\boxed{9^{9^{9^{9^{9}}}}}", "1", 2.0) == 0.0
    assert time.monotonic() - start < 30
