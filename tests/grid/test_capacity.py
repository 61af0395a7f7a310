"""What cells that run at a time need together: on a machine, on GPUs that they share, in the plan, and as a refusal."""

import re

import pytest

from mth.config.cells import Cell, cells_of
from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.grid import capacity
from mth.grid.capacity import Need, gpu_bytes, machine_bytes, needs, remedy
from mth.grid.memory import facts_of_models, memory_estimate, on_card
from mth.grid.placement import place_cells
from mth.grid.plan import plan_table
from mth.grid.preflight import preflight
from tests.conftest import make_config

GIB = 2**30


def list_gpus(tmp_path, monkeypatch, memory, indices):
    """An nvidia-smi that prints one of two answers. memory: index, UUID and MiB of each GPU."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncase $1 in *memory*) printf '{memory}';; *) printf '{indices}';; esac\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """GPUs of 80 and 40 GiB."""
    list_gpus(tmp_path, monkeypatch, r"0, GPU-aa, 81920\n1, GPU-bb, 40960\n", r"0\n1\n")


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
    cells, models, _ = grid("mask_seed=range(0,5)", "hydra.launcher.jobs=3")
    on_gpu = on_card(memory_estimate(cells[0].config, models[repr(cells[0].config.model)], 80 * GIB))
    found = [(need.where, need.cells, need.needed, need.there) for need in needs(cells, models)]
    assert found == [("GPU 0", 2, 2 * on_gpu, 80 * GIB), ("GPU 1", 1, on_gpu, 40 * GIB)]


def test_a_run_is_checked_against_the_gpu_that_it_names(two_gpus):
    for device, where in (("cuda", "GPU 0"), ("cuda:0", "GPU 0"), ("cuda:1", "GPU 1"), ("cuda:01", "GPU 1")):
        config = make_config(model={"device": device})
        (need,) = needs([Cell((), "", config, {})], {repr(config.model): facts_of_models(config.model, {})})
        assert (need.where, need.there) == (where, (40 if where == "GPU 1" else 80) * GIB)


def test_a_gpu_without_memory_of_its_own_is_not_counted(tmp_path, monkeypatch):
    list_gpus(tmp_path, monkeypatch, r"0, GPU-aa, [N/A]\n", r"0\n")
    cells, models, _ = grid("mask_seed=0,1", "hydra.launcher.jobs=2")
    assert gpu_bytes() == {} and needs(cells, models) == []


@pytest.mark.cpu
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
    with pytest.raises(UserError, match=r"a cell needs .* use rollout.batch_size=128$"):
        grid("mask_seed=0")
    grid("mask_seed=0,1", "hydra/launcher=slurm")  # a node of the cluster has its own memory


LARGE = {"name": "qwen2.5-1.5b", "path": "none", "init": "random", "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def large():
    """Facts of the 1.5B model, by the name that `needs` looks them up with."""
    return facts_of_models(ModelConfig(name="qwen2.5-1.5b", path="none", init=Init.random), {})


def large_cell(large, **sections):
    config = make_config(**{"model": LARGE, "lr": {"value": 1e-6}} | sections)
    return Cell((), "", config, {"kind": "slurm", "gpus_per_node": 1}), {repr(config.model): large}


def test_the_estimate_of_an_update_is_what_a_gpu_took(large, monkeypatch):
    """44.2 GiB above the model, measured on an H200 in micro-batches of 22 rows of 730 tokens, when the head had chunks of 2^24 logits."""
    monkeypatch.setattr("mth.training.logprobs.CHUNK_ELEMENTS_GPU", 2**24)
    cell, _ = large_cell(large, train={"micro_batch_tokens": 22 * 730})
    parts = memory_estimate(cell.config, large, 141 * GIB)
    assert (parts["ticket"] + parts["work"]) / GIB == pytest.approx(44.2, rel=0.03)
    assert parts["weights"] == 1_543_714_304 * 2


def test_sampled_gradients_on_a_gpu_need_transposed_operands_and_the_dense_gradient_of_the_head(large):
    work = {}
    for how in ("dense", "sampled"):
        cell, _ = large_cell(large, optimizer={"weight_gradient": how}, sparsity={"percent": 99.9}, train={"micro_batch_tokens": 16_384})
        work[how] = memory_estimate(cell.config, large, 141 * GIB)["work"]
    assert work["sampled"] - work["dense"] == 16_384 * 2 * (8960 + 1536)


def test_what_cannot_be_made_smaller_counts_and_a_checkpoint_is_made_in_host_memory(large):
    def work(**sections):
        cell, _ = large_cell(large, sparsity={"percent": 0.0}, **sections)
        return memory_estimate(cell.config, large, 141 * GIB)["work"]

    few = {"group_size": 4, "batch_size": 1}
    of_a_row, smaller = (work(train={"micro_batch_tokens": tokens}, rollout=few | {"max_tokens": 2048}) for tokens in (2304, 512))
    assert smaller == of_a_row > work(train={"micro_batch_tokens": 512}, rollout=few | {"max_tokens": 64})
    tiny = work(train={"micro_batch_tokens": 1}, rollout=few | {"max_tokens": 1}, model=LARGE | {"activation_checkpointing": True})
    assert tiny == 4 * 1_543_714_304  # the values before a step, which `update_norm` needs


def test_vllm_in_the_same_process_takes_its_share_of_the_gpu_and_hf_its_cache(large):
    def parts(card=80 * GIB, **rollout):
        cell, _ = large_cell(large, rollout=rollout | {"group_size": 4, "max_tokens": 2048}, train={"micro_batch_tokens": 1024})
        return memory_estimate(cell.config, large, card)

    places = 8 * 15_436_967  # of the ticket's entries in vLLM's weights
    assert parts(engine="vllm")["engine"] == int(0.4 * 80 * GIB) + places
    assert parts(engine="vllm", kv_cache_mib=1024)["engine"] == 1_543_714_304 * 2 + GIB + places
    assert parts(engine="hf", batch_size=512)["work"] == 2 * 28_672 * 512 * (2048 + 256)  # bytes per token, sequences, tokens
    assert parts(engine="vllm", batch_size=512)["work"] == parts(engine="vllm", batch_size=1)["work"]
    assert parts(engine="hf")["engine"] == parts(engine="vllm_server")["engine"] == 0
    assert on_card(parts()) == sum(parts().values()) - parts()["process"] + 600 * 2**20


def test_a_plan_for_a_gpu_says_what_fits_wherever_it_is_made(large, tmp_path):
    def last_lines(**sections):
        cell, models = large_cell(large, **sections)
        return plan_table([cell], place_cells([cell], tmp_path, tmp_path), models, 80 * GIB).splitlines()[-2:]

    many = {"train": {"micro_batch_tokens": 16384, "batch_size": 16}}
    parts, verdict = last_lines(rollout={"engine": "vllm", "group_size": 4}, **many)
    assert re.search(r"weights 2\.9, ticket 0\.3, work 4\d\.\d, engine 32\.1 GiB; process is host memory$", parts)
    assert re.match(r"a cell needs up to 8\d\.\d\d GiB of the 80\.0 GiB of a GPU of 80 GiB \(estimate\): does not fit; use train", verdict)
    assert verdict.endswith("use train.micro_batch_tokens=8192")
    assert last_lines(**many)[1].endswith(": fits")


def test_the_remedy_names_the_first_keys_that_are_enough(large):
    def refused(there, **sections):
        cell, models = large_cell(large, **sections)
        return remedy(Need("a GPU", 1, 1000 * GIB, there * GIB), [cell], models)

    most = {"engine": "hf", "group_size": 4, "max_tokens": 2048, "batch_size": 512}
    assert refused(40, rollout=most) == "use train.micro_batch_tokens=8192 rollout.batch_size=256"
    assert refused(3, rollout=most).startswith("a sixteenth of train.micro_batch_tokens and rollout.batch_size would not fit either")
    shared = {"engine": "vllm", "group_size": 4, "gpu_memory_utilization": 0.8}
    assert refused(16, rollout=shared).endswith("rollout.gpu_memory_utilization=0.4")
