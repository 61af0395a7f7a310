"""What cells that run at a time need together: on a machine, on GPUs that they share, in the plan, and as a refusal."""

import re

import pytest

from mth.config.cells import cells_of
from mth.foundations.errors import UserError
from mth.grid import capacity
from mth.grid.capacity import gpu_bytes, machine_bytes, needs
from mth.grid.memory import memory_estimate
from mth.grid.placement import place_cells
from mth.grid.plan import plan_table
from mth.grid.preflight import preflight

GIB = 2**30


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """An nvidia-smi that lists two GPUs of 80 and 40 GiB."""
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\ncase $1 in *memory*) printf '0, GPU-aa, 81920\\n1, GPU-bb, 40960\\n';; *) printf '0\\n1\\n';; esac\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def grid(*arguments):
    cells = cells_of(["-m", "task=arithmetic", *arguments])
    models = preflight(cells)
    return cells, models, [memory_estimate(cell.config, models[repr(cell.config.model)]) for cell in cells]


def test_the_largest_cells_are_those_that_meet_on_a_machine():
    cells, models, parts = grid("sparsity=99.99,0,99", "hydra.launcher.jobs=2", "model.device=cpu")
    sums = sorted(sum(part.values()) for part in parts)
    (need,) = needs(cells, models)
    assert (need.cells, need.needed, need.there) == (2, sums[1] + sums[2], machine_bytes())
    (one,) = needs(*grid("sparsity=99.99,0", "model.device=cpu")[:2])
    assert one.cells == 1


def test_cells_share_gpus_in_turn(two_gpus):
    assert gpu_bytes() == {"0": 80 * GIB, "GPU-aa": 80 * GIB, "1": 40 * GIB, "GPU-bb": 40 * GIB}
    cells, models, parts = grid("mask_seed=range(0,5)", "hydra.launcher.jobs=3")
    on_gpu = sum(parts[0].values()) - parts[0]["process"]
    found = [(need.where, need.cells, need.needed, need.there) for need in needs(cells, models)]
    assert found == [("GPU 0", 2, 2 * on_gpu, 80 * GIB), ("GPU 1", 1, on_gpu, 40 * GIB)]


def test_the_plan_says_what_cells_need_together(tmp_path):
    cells, models, _ = grid("mask_seed=0,1,2", "hydra.launcher.jobs=2")
    shown = plan_table(cells, place_cells(cells, tmp_path, tmp_path), models)
    assert re.search(r"\n2 cells at a time need up to \d+\.\d\d GiB of the \d+\.\d GiB of this machine \(estimate\)$", shown)
    cells, models, _ = grid("mask_seed=0,1,2")
    one_at_a_time = plan_table(cells, place_cells(cells, tmp_path, tmp_path), models)
    assert "at a time" not in one_at_a_time


def test_only_what_cannot_fit_is_refused(monkeypatch):
    _, _, parts = grid("mask_seed=0")
    one = sum(parts[0].values())
    monkeypatch.setattr(capacity, "machine_bytes", lambda: 3 * one)
    grid("mask_seed=range(0,9)", "hydra.launcher.jobs=3")
    with pytest.raises(UserError, match=r"4 cells at a time need .* use hydra.launcher.jobs=3$"):
        grid("mask_seed=range(0,9)", "hydra.launcher.jobs=4")
    monkeypatch.setattr(capacity, "machine_bytes", lambda: one - 1)
    with pytest.raises(UserError, match=r"a cell needs .* lower train.micro_batch_tokens or rollout.batch_size$"):
        grid("mask_seed=0")
    grid("mask_seed=0,1", "hydra/launcher=slurm")  # a node of the cluster has its own memory
