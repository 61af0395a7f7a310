"""Freed memory stays in the process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from mth.config.schema import ModelConfig
from mth.models.load import load_policy
load_policy(ModelConfig(device="cpu"))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):  # a freed block may be too small to align the same tensor again; a second one then alternates with it
    faults()
print(faults())
"""


@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_for_the_next_step_unless_the_environment_says_otherwise(environment, kept):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    made = subprocess.run([sys.executable, "-c", FAULTS], env=inherited | environment, capture_output=True, text=True, check=True)
    assert (int(made.stdout) < 1000) == kept
