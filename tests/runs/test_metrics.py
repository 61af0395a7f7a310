"""Every metric that a run logs is in the one list, with its meaning."""

import json
from pathlib import Path

from mth.runs.metrics import METRICS, meaning

PINS = json.loads((Path(__file__).parents[1] / "data" / "pins.json").read_text())


def test_every_logged_metric_has_a_meaning():
    logged = {name for entry in PINS["journal"] for name in entry["metrics"]}
    assert len(logged) > 25
    assert [name for name in sorted(logged) if meaning(name) is None] == []


def test_names_of_tasks_scores_and_phases_are_placeholders():
    assert meaning("eval/gsm8k/pass_at_1") == METRICS["eval/<task>/pass_at_1"]
    assert meaning("eval/gsm8k/math_verify") == METRICS["eval/<task>/<score>"]
    assert meaning("score/turn_2") == METRICS["score/<score>"]
    assert meaning("seconds/update") == METRICS["seconds/<phase>"]
    assert meaning("novel") is None
    assert meaning("novel/x") is None
