"""Collected gradients: what the loop keeps, exact against sketch, spectrum and theory against plain linear algebra."""

import numpy as np
import pytest
import torch

from mth.analysis.figures.spectrum import center, effective_ranks, eigenvalue_error, spectrum
from mth.analysis.figures.theory import check_masks, top_subspace
from mth.analysis.gram import gram_matrix
from mth.foundations.errors import UserError
from mth.foundations.signals import Requests
from mth.runs.gradient_files import open_gradients
from mth.runs.journal import read_journal
from mth.tickets.masks import sample_mask
from mth.training.collector import Collector, sketch
from mth.training.loop import train
from tests.conftest import make_config


class Flat:
    """As much of a ticket as a collector needs."""

    def __init__(self, size):
        self.active_parameters, self.mask_sha256 = size, "hash"


def collect(folder, vectors, **settings):
    config = make_config(spectrum={"mode": "exact"} | settings, train={"steps": len(vectors)})
    collector = Collector(folder, config, Flat(vectors.shape[1]), -1)
    for step, vector in enumerate(vectors, 1):
        collector.add(step, torch.tensor(vector, dtype=torch.float32))
    return open_gradients(folder)


@pytest.fixture(scope="module")
def vectors():
    random = np.random.default_rng(0)
    low = random.normal(size=(12, 5)) @ random.normal(size=(5, 4000))  # nearly rank 5, as real gradients are of low rank
    return (low + 0.05 * random.normal(size=(12, 4000))).astype(np.float32)


def test_blocks_on_disk_give_the_gram_matrix(tmp_path, vectors):
    exact = collect(tmp_path / "a", vectors)
    wide = vectors.astype(np.float64)
    assert gram_matrix(exact) == pytest.approx(wide @ wide.T, rel=1e-12)
    assert np.array_equal(np.concatenate(list(exact.blocks(memory_bytes=8 * 12 * 17)), axis=1), vectors)
    half = collect(tmp_path / "b", vectors, dtype="bfloat16")
    rounded = torch.tensor(vectors).bfloat16().double().numpy()
    assert gram_matrix(half) == pytest.approx(rounded @ rounded.T, rel=1e-12)
    assert [path.stat().st_size for path in sorted((tmp_path / "b" / "spectrum").glob("*.bin"))] == [8000] * 12


def test_spectrum_of_the_embedded_model_from_sketch_and_exact(embedded):
    exact = open_gradients(embedded)
    truth = gram_matrix(exact)
    width = 4096
    s = np.stack([sketch(torch.from_numpy(exact.block(0, exact.size)[i]), width, 3) for i in range(len(exact.steps))])
    bar = np.sqrt((np.diag(truth)[:, None] * np.diag(truth)[None, :] + truth**2) / width)
    assert (np.abs(s @ s.T - truth) < 5 * bar).all()
    shift = np.abs(spectrum(s @ s.T).eigenvalues - spectrum(truth).eigenvalues).max() / np.trace(truth)
    assert shift < 3 * eigenvalue_error(truth, width)
    centred = s - s.mean(0)  # a sketch is linear: this is the sketch of centred gradients, with an error of its own
    found, expected = spectrum(center(s @ s.T), width), spectrum(center(truth))
    assert (found.error, expected.error) == (pytest.approx(eigenvalue_error(centred @ centred.T, width)), 0)
    assert np.abs(found.eigenvalues - expected.eigenvalues).max() / expected.eigenvalues.sum() < 3 * found.error


def full(**changes):
    """Full training with a clipping norm that every gradient exceeds."""
    small = {"sparsity": {"percent": 0}, "lr": {"value": 1e-4}, "train": {"steps": 3}, "eval": {"every": 0, "samples": 4}}
    return make_config(**small | {"spectrum": {"mode": "exact"}, "optimizer": {"max_grad_norm": 0.1}} | changes)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Three steps of full training of the embedded model with every gradient kept."""
    root = tmp_path_factory.mktemp("spectrum")
    train(full(), root / "run", root)
    return root / "run"


def test_collecting_does_not_change_the_run(embedded, tmp_path):
    train(full(spectrum={"mode": "none"}, train={"steps": 2}), tmp_path / "plain", tmp_path)
    keys = ("reward/mean", "loss", "grad_norm", "update_norm")
    a, b = ([[e.metrics.get(key) for key in keys] for e in read_journal(path)][:3] for path in (embedded, tmp_path / "plain"))
    assert a == b
    norms = [e.metrics["grad_norm"] for e in read_journal(embedded) if e.step]
    kept = open_gradients(embedded)
    assert kept.steps == [1, 2, 3]
    assert min(norms) > 0.1
    assert np.sqrt(np.diag(gram_matrix(kept))) == pytest.approx(norms, rel=1e-3)  # before clipping: the norm that was logged


def test_an_interrupted_collection_resumes_with_the_same_gradients(embedded, tmp_path):
    class StopAfterOne(Requests):
        calls = 0

        @property
        def stop(self):
            self.calls += 1
            return self.calls > 1

        @stop.setter
        def stop(self, value):
            pass

    assert train(full(), tmp_path / "run", tmp_path, StopAfterOne()).status == "interrupted"
    (tmp_path / "run/spectrum/step_000002.bin").write_bytes(b"of a step that was not safe when the machine was lost")
    assert train(full(), tmp_path / "run", tmp_path).status == "finished"
    for step in range(1, 4):
        name = f"spectrum/step_{step:06d}.bin"
        assert (tmp_path / "run" / name).read_bytes() == (embedded / name).read_bytes()


def test_gradients_of_another_model_and_sketches_are_refused(tmp_path, vectors):
    collect(tmp_path, vectors)
    with pytest.raises(UserError, match="4,000 entries, which is not this model"):
        check_masks(top_subspace(open_gradients(tmp_path), 2), {"w": (10,)}, [50], [0])
    with pytest.raises(UserError, match="is a sketch"):
        top_subspace(collect(tmp_path / "s", vectors, mode="sketch", width=64), 2)


def test_effective_ranks_of_known_spectra():
    flat = effective_ranks(np.ones(10))
    assert flat == pytest.approx(dict.fromkeys(flat, 10.0) | {"share 90%": 9.0})
    one = effective_ranks(np.array([1.0, 0.0, 0.0]))
    assert all(value == pytest.approx(1) for value in one.values())
    geometric = 0.5 ** np.arange(40)
    ranks = effective_ranks(geometric)
    assert (ranks["share 90%"], ranks["share 95%"], ranks["share 99%"]) == (4, 5, 7)
    assert ranks["stable"] == pytest.approx(2)
    assert ranks["participation"] == pytest.approx(3)
    assert ranks["entropy"] == pytest.approx(4)


def test_centering(vectors):
    wide = vectors.astype(np.float64)
    centred = wide - wide.mean(0)
    assert center(wide @ wide.T) == pytest.approx(centred @ centred.T, abs=1e-6 * np.abs(wide @ wide.T).max())


def test_theory_against_dense_linear_algebra(tmp_path, vectors):
    shapes = {"a": (50, 60), "b": (1000,)}
    rank, percent, seed = 3, 80, 0
    space = top_subspace(collect(tmp_path, vectors), rank)
    wide = vectors.astype(np.float64)
    _, values, v = np.linalg.svd(wide, full_matrices=False)
    v = v[:rank].T
    assert space.share == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum())
    assert space.norms == pytest.approx(np.ones(rank))
    assert space.mu == pytest.approx(np.sqrt(4000) * np.abs(v).max(0), rel=1e-6)
    indices = sample_mask(shapes, "random", percent, seed)
    chosen = np.concatenate([indices["a"], indices["b"] + 3000])
    cut = np.zeros_like(v)
    cut[chosen] = v[chosen]
    k = chosen.size
    found = check_masks(space, shapes, [percent], [seed])[0]
    assert found.active == k == 800
    assert found.deviation == pytest.approx(np.linalg.norm(4000 / k * cut.T @ cut - np.eye(rank), 2), rel=1e-6)
    target, image = wide @ v, wide @ cut
    best = image @ np.linalg.lstsq(image, target, rcond=None)[0]
    assert found.error == pytest.approx(np.linalg.norm(target - best) / np.linalg.norm(target), rel=1e-5)
    assert found.free <= found.error + 1e-12


def test_restricted_gram_matrices_concentrate_as_masks_grow(tmp_path, vectors):
    shapes = {"a": (50, 60), "b": (1000,)}
    found = check_masks(top_subspace(collect(tmp_path, vectors), 3), shapes, [99, 90, 50], [0, 10, 42])
    by_level = {p: np.mean([f.deviation for f in found if f.percent == p]) for p in (99, 90, 50)}
    assert by_level[99] > by_level[90] > by_level[50]
    assert all(f.deviation <= f.bound for f in found)
