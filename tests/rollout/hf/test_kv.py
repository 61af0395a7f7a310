"""The key-value cache against plain tensors."""

import torch
from transformers import Qwen2Config

from mth.rollout.hf.kv import GrowingLayer, concat_caches, growing_cache, remove_finished_rows, select_rows


def test_cache_grows_concatenates_and_removes_rows_like_plain_tensors():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 2, 90, 4, generator=generator)
    layer = GrowingLayer()
    for i in range(40):
        got, _ = layer.update(keys[:, :, i : i + 1], -keys[:, :, i : i + 1])
    assert torch.equal(got, keys[:, :, :40])
    cache = growing_cache(Qwen2Config(num_hidden_layers=1))
    cache.layers = [layer]
    finished = torch.tensor([True, False, False, True, False, False])
    order = remove_finished_rows(cache, finished, (~finished).nonzero().squeeze(1))
    assert sorted(order.tolist()) == [1, 2, 4, 5]
    got, negative = layer.update(keys[order][:, :, 40:], -keys[order][:, :, 40:])
    assert torch.equal(got, keys[order])
    assert torch.equal(negative, -got)
    other = select_rows(cache, torch.tensor([1, 1]))
    other.layers[0].update(keys[:2, :, :3], keys[:2, :, :3])
    both, _ = concat_caches([cache, other]).layers[0].update(keys[:, :, :1], keys[:, :, :1])
    assert both.shape == (6, 2, 94, 4)
    assert torch.equal(both[:4, :, 3:93], keys[order])
    assert (both[:4, :, :3] == 0).all()
    assert torch.equal(both[4, :, :90], keys[order[1]])
