"""One gradient per step on disk: what is written, what is refused, and the random projection."""

import shutil

import numpy as np
import pytest
import torch

from mth.foundations.errors import UserError
from mth.runs.gradient_files import open_gradients, whole_steps
from mth.training import collector as collector_module
from mth.training.collector import Collector, sketch
from tests.conftest import make_config


class Flat:
    """As much of a ticket as a collector needs."""

    def __init__(self, size):
        self.active_parameters, self.mask_sha256 = size, "hash"


def config_of(steps=3, **settings):
    return make_config(spectrum={"mode": "exact"} | settings, train={"steps": steps})


def collect(folder, vectors, **settings):
    collector = Collector(folder, config_of(len(vectors), **settings), Flat(vectors.shape[1]), -1)
    for step, vector in enumerate(vectors, 1):
        collector.add(step, torch.tensor(vector))
    return open_gradients(folder)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32)


def test_gradients_are_read_back_as_they_were_written(tmp_path, vectors, monkeypatch):
    monkeypatch.setattr(collector_module, "CHUNK_ELEMENTS", 1024)
    exact = collect(tmp_path / "exact", vectors)
    assert exact.exact and exact.steps == [1, 2, 3]
    assert np.array_equal(np.concatenate(list(exact.blocks(memory_bytes=8 * 3 * 17)), axis=1), vectors)
    rounded = collect(tmp_path / "rounded", vectors, dtype="bfloat16")
    assert np.array_equal(rounded.block(10, 20), torch.tensor(vectors).bfloat16().float().numpy()[:, 10:20])
    projected = collect(tmp_path / "projected", vectors, mode="sketch", width=64)
    assert not projected.exact and projected.size == 64
    assert np.array_equal(projected.block(0, 64), np.stack([sketch(torch.tensor(v), 64, 0) for v in vectors]))
    sizes = {
        name: {path.stat().st_size for path in (tmp_path / name / "spectrum").glob("*.bin")} for name in ("exact", "rounded", "projected")
    }
    assert sizes == {"exact": {20_000}, "rounded": {10_000}, "projected": {512}}


def test_files_of_steps_that_are_repeated_are_deleted_and_incomplete_ones_do_not_count(tmp_path, vectors):
    collect(tmp_path, vectors)
    Collector(tmp_path, config_of(), Flat(5000), 2)
    assert whole_steps(tmp_path) == [1, 2]
    (tmp_path / "spectrum/step_000002.bin").write_bytes(b"cut off")
    assert whole_steps(tmp_path) == [1]


def test_a_write_that_fails_leaves_nothing(tmp_path, vectors, monkeypatch):
    collector = Collector(tmp_path, config_of(), Flat(5000), -1)
    monkeypatch.setattr(collector_module, "step_file", lambda folder, step: folder / "collection.json" / "step.bin")
    with pytest.raises(UserError, match=r"could not be written .*resume=true"):
        collector.add(1, torch.tensor(vectors[0]))
    assert [path.name for path in (tmp_path / "spectrum").iterdir()] == ["collection.json"]


def test_a_disk_that_is_too_small_is_refused_before_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(collector_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"276\.06 GiB to come .* only 0\.00 GiB are free .*sketch or spectrum\.dtype=bfloat16"):
        Collector(tmp_path, config_of(150), Flat(494_032_768), -1)


def test_gradients_of_another_run_are_refused(tmp_path, vectors):
    collect(tmp_path, vectors)
    with pytest.raises(UserError, match="gradients of another run: entries is 5000, here 10"):
        Collector(tmp_path, config_of(), Flat(10), -1)
    with pytest.raises(UserError, match="gradients of another run: mode is exact, here sketch"):
        Collector(tmp_path, config_of(mode="sketch"), Flat(5000), -1)


def test_there_is_no_spectrum_without_gradients(tmp_path, vectors):
    with pytest.raises(UserError, match="has no gradients"):
        open_gradients(tmp_path)
    Collector(tmp_path, config_of(), Flat(5000), -1).add(1, torch.tensor(vectors[0]))
    with pytest.raises(UserError, match="has 1 whole gradients; a spectrum needs two at least"):
        open_gradients(tmp_path)


def test_sketch_is_unbiased_and_within_its_error_bar(vectors):
    wide = vectors[:2].astype(np.float64)
    truth = wide @ wide.T
    width, rounds = 256, 300
    estimates = []
    for seed in range(rounds):
        s = np.stack([sketch(torch.tensor(v), width, seed) for v in wide])
        estimates.append(s @ s.T)
    off = np.array(estimates) - truth
    bar = np.sqrt((np.diag(truth)[:, None] * np.diag(truth)[None, :] + truth**2) / width)
    assert (np.abs(off.mean(0)) < 4 * bar / np.sqrt(rounds)).all()  # unbiased
    assert (off.std(0) < 1.15 * bar).all() and (off.std(0) > 0.7 * bar).all()  # the bound holds, and is close
