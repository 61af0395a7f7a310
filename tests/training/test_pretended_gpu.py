"""The whole of `train` on a pretended GPU: no operation mixes devices, results are those of the CPU, and the host seldom waits."""

from math import ceil

import pytest
import torch

import tests.pretend_cuda as gpu
from mth.models.load import keep_model
from mth.runs.journal import read_journal
from mth.training import loop
from mth.training.lines import Line
from tests import flash_on_cpu as on_cpu
from tests import interpreted
from tests.conftest import make_config

flash_on_cpu = on_cpu.flash_on_cpu
interpreted_kernels, launched = interpreted.interpreted_kernels, interpreted.launched
SMALL = {
    "train": {"steps": 2, "batch_size": 4},
    "rollout": {"max_tokens": 12, "group_size": 2},
    "eval": {"samples": 2, "every": 0},
}
EVERYTHING = {
    "model": {"dtype": "bfloat16", "activation_checkpointing": True},
    "algorithm": {"kl_coef": 0.05, "lag": 1, "advantage": "centered", "ratio": "drop"},
    "optimizer": {"clip_norm": "dense"},
    "rollout": {"dtype": "float32", "logprobs": "recompute"},
    "train": {"micro_batch_tokens": 70},
    "spectrum": {"mode": "sketch", "width": 1024},
}
SAMPLED = {"train": {"steps": 1}, "sparsity": {"percent": 99.9}, "optimizer": {"weight_gradient": "sampled"}}
# Waits of the host. Rollouts: prompts, noise and stop tokens go to the device, replies come back. Every 8 tokens finished rows are looked
# for. A micro-batch: seven tensors go to the device, and its sampled tokens are counted, once more for the reference of a KL penalty.
OF_A_STEP, OF_ROLLOUTS, OF_A_LOOK, OF_A_MICRO_BATCH = 7, 13, 3, 9


@pytest.fixture
def last_step(monkeypatch):
    """Of the last call of train_step: `waits`, `batches` (micro-batches), `longest` (tokens of a reply)."""
    found = {}
    plain = loop.train_step
    collate = plain.__globals__["collate"]

    def train_step(run, step):
        before = gpu.WAITS.found.copy()
        metrics = plain(run, step)
        found.update(waits=gpu.WAITS.found - before, longest=metrics["completion/tokens_max"])
        return metrics

    def counted(*arguments):
        batches = collate(*arguments)
        found.update(batches=len(batches), lines=isinstance(getattr(batches[0].layout, "attention", None), Line))
        return batches

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setitem(plain.__globals__, "collate", counted)
    return found


def small(sections):
    return make_config(**{key: SMALL.get(key, {}) | sections.get(key, {}) for key in [*SMALL, *sections]})


def train_there(tmp_path, config):
    """Train on the pretended GPU. Returns the metrics of the last step."""
    keep_model(config.model)
    with gpu.pretended_gpu() as waits:
        summary = loop.train(config, tmp_path / "gpu", tmp_path)
    assert (summary.status, summary.steps) == ("finished", config.train.steps)
    assert waits.operations > 2000 * config.train.steps
    return read_journal(tmp_path / "gpu")[-1].metrics


@pytest.mark.parametrize(
    ("sections", "kernels", "lines"),
    [({}, False, False), (EVERYTHING, False, False), (EVERYTHING, False, True), (SAMPLED, True, True)],
    ids=["plain", "everything", "everything, in lines", "sampled, in lines"],
)
def test_train_mixes_no_devices_and_seldom_waits(request, tmp_path, last_step, sections, kernels, lines):
    launches = request.getfixturevalue("launched") if kernels else {}
    if lines:
        request.getfixturevalue("flash_on_cpu")
    config = small(sections)
    there = train_there(tmp_path, config)
    assert last_step["lines"] is lines
    assert bool(launches) == kernels and ("sum_products" in launches) == (sections is SAMPLED)
    limit = OF_A_STEP + OF_ROLLOUTS + OF_A_LOOK * ceil(last_step["longest"] / 8) + OF_A_MICRO_BATCH * last_step["batches"]
    assert limit - 8 <= last_step["waits"].total() <= limit, last_step
    config.model.device = "cpu"
    loop.train(config, tmp_path / "cpu", tmp_path)
    here = read_journal(tmp_path / "cpu")[-1].metrics
    for key in ("entropy", "loss", "ratio/mean", "grad_norm", "update_norm"):
        assert there[key] == pytest.approx(here[key], rel=0.05, abs=0.02), key


def test_the_pretended_gpu_refuses_what_cuda_refuses():
    with gpu.pretended_gpu() as waits:
        there, here = torch.ones(3, device="cuda:0"), torch.ones(3)
        for mix in (lambda: there + here, lambda: torch.cat([there, here]), there.numpy):
            with pytest.raises((RuntimeError, TypeError), match=r"same device|numpy"):
                mix()
        assert (there + 1.0).device == gpu.DEVICE and (there + torch.tensor(1.0)).sum().item() == 6
        assert there[torch.tensor([0, 1])].tolist() == [1, 1] and there[there > 0].shape == (3,) and there.to("cpu").device.type == "cpu"
    kinds = {kind: waits.within(kind) for kind in ("to device", "to host", "result")}
    assert kinds == {"to device": 1, "to host": 2, "result": 2}, str(waits)
