"""What holds for all tests: in CI a skip is a failure, a test that fails leaves no process behind, and the mark `cpu` hides GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 failed"), ("", "1 skipped")])
def test_a_skip_fails_in_ci_only(tmp_path, ci, outcome):
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n\ndef test_it():\n    pytest.skip('component missing: install it')\n")
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | ({"CI": ci} if ci else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert outcome in result.stdout


LEAVES_TWO = """
import subprocess, sys
from conftest import begin

def test_it(tmp_path):
    own = begin(["sleep", "600"])
    apart = subprocess.Popen(["sleep", "601"], cwd=tmp_path, start_new_session=True)  # as a cell of a grid
    raise AssertionError(f"pids {own.pid} {apart.pid} end")
"""


def test_a_test_that_fails_leaves_no_process_behind(tmp_path):
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(LEAVES_TWO)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    pids = said.partition("AssertionError: pids ")[2].split()[:2]
    assert len(pids) == 2, said
    for pid in pids:
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().split()[2] == "Z"


WITH_A_GPU = """
import os, pytest, torch
torch.cuda.is_available = lambda: True

@pytest.fixture(scope="module")
def found():
    return torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")

@pytest.mark.cpu
def test_marked(found):
    assert found == (torch.cuda.is_available(), os.environ["CUDA_VISIBLE_DEVICES"]) == (False, "")

def test_other():
    assert torch.cuda.is_available() and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
"""


def test_a_test_marked_cpu_finds_no_gpu(tmp_path):
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(WITH_A_GPU)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "markers=cpu", "--rootdir", tmp_path, tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": "3"}).stdout
    assert "2 passed" in said, said
