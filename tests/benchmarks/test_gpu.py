"""benchmarks/gpu.py: its sections on tiny shapes on the CPU, and how it runs them. vllm, vllm-step, trl and cells, which take longest, are not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import flash_on_cpu as on_cpu
from tests import interpreted

flash_on_cpu = on_cpu.flash_on_cpu
interpreted_kernels, launched = interpreted.interpreted_kernels, interpreted.launched
FOLDER = Path(__file__).parents[2] / "benchmarks"
WITHOUT_GPU = ("cuDNN", "memory-efficient")  # kernels


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu
    import gpu_sections

    return gpu, gpu_sections


def measured(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


SMALL_SECTIONS = ["works", "ceilings", "step-0.5b", "head", "attention", "packing", "decoding", "graphs", "ticket", "kernel"]


@pytest.mark.parametrize("name", SMALL_SECTIONS)
def test_a_section_measures(request, modules, capsys, name):
    _, sections = modules
    if name in ("ticket", "kernel"):
        request.getfixturevalue("launched")
    if name in ("attention", "packing", "works"):
        request.getfixturevalue("flash_on_cpu")
    sections.SECTIONS[name](sections.Bench(name, "cpu", tiny=True))
    rows = measured(capsys)
    failed = [row for row in rows if row["what"] == "failed" and not row["of"].startswith(WITHOUT_GPU)]
    assert rows and not failed, failed
    assert all(row["section"] == name for row in rows)
    if name == "works":
        same = {row["compared_to"]: row["same_bits"] for row in rows if row["what"] == "same bits"}
        assert same == dict.fromkeys(("once more", "continued", "not deterministic", "bf16 once more"), True)
        assert [row["in_lines"] for row in rows if row["what"] == "bf16"] == [True]
    if name == "packing":
        kinds = {"as mth chooses": True, "under a mask": False, "one rollout each": False}
        assert {row["rows"]: row["lines"] for row in rows} == kinds
    if name == "attention":
        assert sum(row.get("kernel") == "in a line, as a run" for row in rows) == 2
    if name == "graphs":
        by_kind = {row["graphs"]: row["captures"] for row in rows if row["what"] == "decoding"}
        assert by_kind[True] > 0 and by_kind[False] == 0
        assert [row["share"] > 0.4 for row in rows if row["what"] == "equal replies"] == [True]  # bf16 rounds differently
    if name == "step-0.5b":
        assert {row["method"] for row in rows} >= {"floor", "ticket", "ticket-sampled", "full"}
    if name == "ticket":
        assert [row["by"] for row in rows] == ["kernels", "torch"] * 4
    if name == "kernel":
        errors = [row for row in rows if row["what"] == "error"]
        assert len(errors) == 4 and all(row["same_bits"] and row["relative"] < 1e-5 for row in errors)
        assert len([row for row in rows if row["what"] == "sampled"]) == 2 * 4


def test_sections_have_limits_and_an_error_is_a_measurement(modules, capsys):
    gpu, sections = modules
    assert gpu.LIMITS.keys() == sections.SECTIONS.keys()
    bench = sections.Bench("head", "cpu", tiny=True)
    with bench.guarded("a part"):
        raise ValueError("too large\nsecond line")
    assert measured(capsys) == [{"section": "head", "what": "failed", "of": "a part", "why": "ValueError: too large"}]


def stub(tmp_path, monkeypatch, gpu):
    """Sections that need no torch: one that measures, one that fails, one that never ends."""
    (tmp_path / "gpu_sections.py").write_text(
        "import sys, time\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        'if sys.argv[1] == \'ceilings\': print(\'{"section": "ceilings", "what": "ceiling", "of": "copy", "value": 1.5}\')\n'
        "if sys.argv[1] == 'head': sys.exit('head: no memory')\n"
        "if sys.argv[1] == 'ticket': time.sleep(600)\n"
    )
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "LIMITS", {"ceilings": 30, "head": 30, "ticket": 0.3, "works": 30})


def test_a_section_that_fails_or_takes_too_long_does_not_stop_the_others(tmp_path, monkeypatch, modules, capsys):
    gpu, _ = modules
    stub(tmp_path, monkeypatch, gpu)
    rows = gpu.measure(["head", "ticket", "ceilings"], [], 60, tmp_path / "gpu.jsonl")
    assert [row["what"] for row in rows] == ["failed", "failed", "ceiling"]
    assert rows[0]["why"] == "head: no memory" and rows[1]["why"].startswith("stopped after")
    assert [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()] == rows
    assert "## ceilings: ceiling\n\n| of | value |\n| --- | --- |\n| copy | 1.5 |" in gpu.tables(rows)
    (late,) = gpu.measure(["works"], [], 1, tmp_path / "late.jsonl")
    assert late["what"] == "left out" and "--minutes" in late["why"]


def test_an_unknown_section_is_refused():
    done = subprocess.run([sys.executable, str(FOLDER / "gpu.py"), "--only", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "--only=nothing: no such section; choose from works, ceilings" in done.stderr
