"""Graders: recorded pairs, golds of GSM8K and of MATH's kinds, and the worker processes under load, stops and deaths."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mth.foundations.errors import UserError
from mth.tasks import graders
from mth.tasks.equivalence import same
from mth.tasks.graders import LONGEST, Pool, begin_math_verify, environment, math_verify, strict

DATA = Path(__file__).parents[1] / "data"
GSM8K = [gold.replace(",", "") for gold in (DATA / "gsm8k_test_gold.txt").read_text().split()]
PAIRS = [json.loads(line) for line in (DATA / "grader_pairs.jsonl").read_text().splitlines()]
GOLDS = (DATA / "math_golds.txt").read_text().splitlines()
# A worker without the library: `hang` sleeps, `burn` takes CPU time, `die` ends, all else is right.
FAKE = """import json, os, signal, sys, time
print('ready', flush=True)
for line in sys.stdin:
    boxed, gold, seconds = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    while 'burn' in boxed: pass
    if 'hang' in boxed: time.sleep(60)
    if 'die' in boxed: os._exit(3)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(1, flush=True)
"""


@pytest.fixture
def fake():
    pool = Pool(2, (sys.executable, "-c", FAKE), stalled=3.0)
    yield pool
    pool.close()


def test_recorded_pairs():
    found = math_verify([(pair["reply"], pair["gold"]) for pair in PAIRS], 30.0)
    for pair, grade in zip(PAIRS, found, strict=True):
        assert (strict(pair["reply"], pair["gold"]), grade) == (pair["strict"], pair["math_verify"]), pair


def test_golds_of_gsm8k():
    right, wrong = ([rf"The answer is \boxed{{{gold}{tail}}}." for gold in GSM8K] for tail in ("", "1"))
    claims = [rf"\boxed{{77777 = {gold}}}" for gold in GSM8K]
    assert len(GSM8K) == 1319
    for replies, grade in ((right, 1.0), (wrong, 0.0)):
        assert [strict(*answer) for answer in zip(replies, GSM8K, strict=True)] == [grade] * len(GSM8K)
        assert math_verify(list(zip(replies, GSM8K, strict=True)), 30.0) == [grade] * len(GSM8K)
    assert not any(math_verify(list(dict.fromkeys(zip(claims, GSM8K, strict=True))), 30.0))


@pytest.mark.parametrize(
    ("form", "grade"),
    [
        ("{}", True),
        ("$  {} $ .", True),
        ("77777 = {}", False),
        ("{} = 77777", False),
        (r"77777 \to {}", False),
        (r"77777 := {}", False),
        ("77777, {}", False),
        ("({}) + 1", False),
    ],
)
def test_golds_of_the_kinds_of_math(form, grade):
    assert [gold for gold in GOLDS if same(form.format(gold), gold) != grade] == []


def test_texts_that_need_no_library(monkeypatch):
    monkeypatch.setattr(graders, "_grades", {})
    pool = Pool(1, ("no such command",))
    long = "1" * (LONGEST + 1)
    answers = [(r"\boxed{7}", "7"), (r"\boxed{8}", "7"), (r"\boxed{x}", "x"), ("7", "7"), (rf"\boxed{{{long}}}", long), (r"\boxed{}", "")]
    assert math_verify(answers, 1.0, pool) == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("grader", [strict, environment])
def test_an_empty_gold_is_never_rewarded(grader):
    assert [grader(reply, "") for reply in (r"\boxed{}", r"\boxed{ }", "", " ")] == [0.0] * 4


@pytest.mark.parametrize(
    ("reply", "gold", "grade"),
    [
        (r"so \boxed{18}.", "18", 1.0),
        (r"so \boxed{ 18}.", "18", 0.0),
        ("18", "18", 1.0),
        ("so 18", "18", 0.0),
        (r"\boxed{1} \boxed{18}", "18", 1.0),
        (r"\boxed{18} \boxed{1", "18", 0.0),
        (r"\boxed {18}", "18", 0.0),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
    ],
)
def test_the_grader_of_the_published_environment(reply, gold, grade):
    assert environment(reply, gold) == grade


def test_a_worker_that_takes_too_much_cpu_time_is_replaced(fake):
    start = time.monotonic()
    assert fake.grade([("burn", ""), ("a", ""), ("b", ""), ("burn", "")], 0.3) == [None, 1.0, 1.0, None]
    assert time.monotonic() - start < 20
    assert fake.grade([("c", "")], 0.3) == [1.0]


def test_a_lost_worker_is_asked_for_again_once(fake):
    assert fake.grade([("die", ""), ("a", "")], 1.0) == [None, 1.0]


def test_a_worker_without_cpu_time_and_without_an_answer_is_lost_in_the_end(fake):
    assert fake.grade([("hang", "")], 1.0) == [None]


def test_a_stopped_worker_answers_when_it_goes_on(fake):
    fake.stalled = 60.0
    fake.grade([("a", ""), ("b", "")], 0.2)
    for worker in fake.workers:
        os.kill(worker.process.pid, signal.SIGSTOP)
    pids = [worker.process.pid for worker in fake.workers]
    threading.Timer(1.5, lambda: [os.kill(pid, signal.SIGCONT) for pid in pids]).start()
    assert fake.grade([("c", ""), ("d", ""), ("e", "")], 0.2) == [1.0] * 3
    assert [worker.process.pid for worker in fake.workers] == pids


def test_a_worker_killed_from_outside_costs_no_answer(fake):
    fake.grade([("a", ""), ("b", "")], 1.0)
    os.kill(fake.workers[0].process.pid, signal.SIGKILL)
    assert fake.grade([("c", ""), ("d", "")], 1.0) == [1.0, 1.0]


def test_answers_are_graded_side_by_side(fake):
    assert fake.grade([(str(i), "") for i in range(40)], 1.0) == [1.0] * 40
    assert len(fake.workers) == 2


def test_a_timeout_is_not_remembered_and_a_grade_is(fake, monkeypatch):
    monkeypatch.setattr(graders, "_grades", {})
    assert math_verify([(r"\boxed{burn}", "x"), (r"first \boxed{a}", "x")], 0.2, fake) == [None, 1.0]
    other = Pool(1, (sys.executable, "-c", FAKE.replace("'burn'", "'no'").replace("'die'", "'a'")))
    assert math_verify([(r"\boxed{burn}", "x"), (r"another text, \boxed{a}", "x")], 0.2, other) == [1.0, 1.0]
    other.close()


def test_what_has_begun_is_graded_once_while_others_go_on(tmp_path):
    log = tmp_path / "asked"
    code = FAKE.replace("    while", f"    print(boxed, file=open({str(log)!r}, 'a'), flush=True)\n    while")
    pool = Pool(2, (sys.executable, "-c", code))
    pool.begin([("a", ""), ("burn", ""), ("b", ""), ("a", "")], 0.3)
    assert not pool.done  # it has waited for none
    deadline = time.monotonic() + 20
    while len(pool.done) < 3 and time.monotonic() < deadline:
        pool.begin([("b", "")], 0.3)
        time.sleep(0.01)
    assert pool.grade([("burn", ""), ("b", ""), ("c", ""), ("a", "")], 0.3) == [None, 1.0, 1.0, 1.0]
    assert sorted(log.read_text().split()) == ["a", "b", "burn", "c"] and not pool.done
    pool.begin([("hang", ""), ("d", "")], 0.3)
    pool.close()
    assert not pool.waiting and not pool.workers and pool.grade([("d", "")], 0.3) == [1.0]
    pool.close()


def test_math_verify_finds_what_it_has_begun(fake, monkeypatch):
    monkeypatch.setattr(graders, "_grades", {("old", "x"): 0.0})
    answers = [(rf"\boxed{{{boxed}}}", "x") for boxed in ("a", "x", "old", "burn")]
    begin_math_verify(answers, 0.3, fake)
    asked = [*fake.waiting, *(worker.job for worker in fake.workers if worker.job)]
    assert asked == [("a", "x", 0.3), ("burn", "x", 0.3)]
    assert math_verify(answers, 0.3, fake) == [1.0, 1.0, 0.0, None]


def test_a_worker_that_cannot_start_is_an_error_not_a_zero():
    with pytest.raises(UserError, match="does not start"):
        Pool(1, (sys.executable, "-c", "raise SystemExit(1)")).grade([("1", "1")], 5.0)


def test_real_workers_have_a_session_of_their_own_limit_sympy_and_may_be_stopped():
    pool = Pool(1)
    assert pool.grade([("9^{9^{9^{9^{9}}}}", "1"), ("0.5", r"\frac12")], 1.0) == [None, 1.0]
    pid = pool.workers[0].process.pid
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.5, lambda: os.kill(pid, signal.SIGCONT)).start()
    assert pool.grade([("0.25", r"\frac14")], 0.5) == [1.0]
    pool.close()


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_their_parent(ending):
    code = f"import os, sys\nfrom mth.tasks.graders import Pool\npool = Pool(2, (sys.executable, '-c', {FAKE!r}))\n"
    code += f"pool.grade([('a', ''), ('b', '')], 1.0)\nprint(*[w.process.pid for w in pool.workers], flush=True)\n{ending}"
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False).stdout
    assert time.monotonic() - start < 30
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 2
    while any(alive(pid) for pid in pids):
        assert time.monotonic() - start < 40
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that has ended but is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
