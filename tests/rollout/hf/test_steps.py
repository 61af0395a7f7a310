"""Steps of fixed shape against those of a growing cache, and their capture on a pretended GPU, which replays what it has captured."""

import inspect
import warnings
import weakref
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import tests.pretend_cuda as gpu
from mth.config.schema import RolloutConfig
from mth.models.load import Policy
from mth.rollout.engine import Request
from mth.rollout.hf import graph
from mth.rollout.hf.engine import HfEngine, generate_batch
from mth.rollout.hf.kv import GrowingLayer, use_grouped_attention
from mth.rollout.hf.steps import FixedLayer
from tests.tickets.models import ticket_of

STOPS = frozenset(range(45))
DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
}  # its frequencies depend on a value on the device
FAMILIES = {
    "qwen2": (Qwen2Config, {}),
    "llama": (LlamaConfig, {"attention_bias": True}),
    "sliding": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "dynamic": (LlamaConfig, DYNAMIC),
}


def model_of(family):
    kind, shape = FAMILIES[family]
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(kind(vocab_size=1200, max_position_embeddings=256, **sizes, **shape)).eval()


def requests(count=24, padded=True):
    """Each prompt twice, some with a common beginning."""
    base = torch.randint(60, 1200, (3, 30), generator=torch.Generator().manual_seed(2)).tolist()
    return [Request([*base[i % 3][: 20 + (i // 2 % 4 if padded else 0)], 100 + i // 2], 50 + i) for i in range(count)]


def same_replies(one, other, tolerance=2e-5):
    assert [c.ids for c in one] == [c.ids for c in other]
    assert [c.stopped for c in one] == [c.stopped for c in other]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "equal-lengths"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_steps_of_fixed_shape_give_the_same_replies(family, padded, monkeypatch):
    model, shapes, held, allocated = model_of(family), [], [], GrowingLayer._reallocated

    def capture(step):
        shapes.append(tuple(step.__self__.mask.shape[::3]))
        held.append(weakref.ref(step.__self__.fixed))

    def poisoned(layer, *arguments):  # what was never written must not reach a result
        made = allocated(layer, *arguments)
        made[:, :, layer.length :] = torch.nan
        return made

    monkeypatch.setattr(GrowingLayer, "_reallocated", poisoned)
    with use_grouped_attention(model):
        plain = generate_batch(model, requests(padded=padded), 90, 1.0, STOPS)
        fixed = generate_batch(model, requests(padded=padded), 90, 1.0, STOPS, capture=capture)
    assert all(cache() is None for cache in held)  # freed at once, not when the garbage collector comes by
    same_replies(fixed, plain)
    rows, widths = (list(sizes) for sizes in zip(*shapes, strict=True))
    assert rows[0] == 24 and rows == sorted(rows, reverse=True) and all(2 * b <= a for a, b in pairwise(rows) if a != b)
    assert widths == sorted(widths) and len(set(widths)) == 2  # the cache has grown
    assert len(set(rows)) >= 3  # rows have left it
    assert all(width % 16 == 0 for width in widths)


def generate_there(family, **config):
    """Replies on the pretended GPU, and its captures and replays."""
    model, tokens = model_of(family), config.pop("tokens", 40)
    with gpu.pretended_gpu() as waits:
        policy = Policy(gpu.move(model), None, STOPS)
        engine = HfEngine(policy, ticket_of(model, 95), RolloutConfig(batch_size=8, **config))
        return engine.generate(requests(12), tokens, 1.0), waits


def test_a_gpu_replays_captured_steps_with_the_replies_of_a_cpu():
    policy = Policy(model_of("qwen2"), None, STOPS)
    engine = HfEngine(policy, ticket_of(policy.model, 95), RolloutConfig(batch_size=8))
    assert not engine.captures  # a CPU launches nothing
    there, waits = generate_there("qwen2")
    same_replies(there, engine.generate(requests(12), 40, 1.0))
    assert waits.captures >= 3 and waits.replays > 50  # two batches; rows leave the first
    launched, plain = generate_there("qwen2", cuda_graphs=False)
    same_replies(there, launched)
    assert plain.captures == plain.replays == 0
    assert waits.count <= plain.count


def test_a_position_is_written_without_sorting_indices():
    """With deterministic algorithms, CUDA's index_copy_ sorts the indices and copies the cache. One position needs no order."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen[str(function)] = torch.are_deterministic_algorithms_enabled()
            return function(*args, **(kwargs or {}))

    layer, seen, new = GrowingLayer(), {}, torch.ones(2, 1, 1, 4)
    layer.update(new, new)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with Watch():
            FixedLayer(layer, torch.tensor([7])).update(2 * new, 3 * new)
        assert seen["aten.index_copy_.default"] is False
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert (layer.keys[:, :, 7] == 2).all() and (layer.values[:, :, 7] == 3).all()


@pytest.mark.parametrize("graphs", [True, False])
def test_a_gpu_tells_each_reply_when_its_row_leaves(graphs):
    told, model = [], model_of("qwen2")
    with gpu.pretended_gpu():
        engine = HfEngine(Policy(gpu.move(model), None, STOPS), ticket_of(model, 95), RolloutConfig(batch_size=8, cuda_graphs=graphs))
        replies = engine.generate(requests(12), 40, 1.0, ended=told.append)
    assert sorted(place for pairs in told for place, _ in pairs) == list(range(12))
    assert all(completion == replies[place] for pairs in told for place, completion in pairs)
    assert sum(map(bool, told)) > 2 and [] in told  # before the ends of the two batches, and without news
    assert len(told[-1]) < 6


def test_a_cpu_tells_nothing_early():
    policy, told = Policy(model_of("qwen2"), None, STOPS), []
    HfEngine(policy, ticket_of(policy.model, 95), RolloutConfig()).generate(requests(4), 8, 1.0, ended=told.append)
    assert told == []


def test_few_tokens_are_not_worth_a_capture():
    _, waits = generate_there("qwen2", tokens=16)
    assert waits.captures == 0


@pytest.mark.parametrize(("family", "why"), [("dynamic", "called a synchronizing CUDA operation"), ("sliding", "full attention")])
def test_what_cannot_be_captured_is_decoded_step_by_step(family, why, capsys):
    policy = Policy(model_of(family), None, STOPS)
    here = HfEngine(policy, ticket_of(policy.model, 95), RolloutConfig(batch_size=8)).generate(requests(12), 40, 1.0)
    capsys.readouterr()
    there, waits = generate_there(family)
    same_replies(there, here)
    said = capsys.readouterr().out.splitlines()
    assert waits.captures == waits.replays == 0 and len(said) == 1
    assert said[0].startswith("warning: rollout.cuda_graphs: decoding is slower") and why in said[0]


def test_what_a_failed_step_has_launched_is_waited_for_and_torchs_notice_is_not_shown():
    order, modes = [], []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            order.append(f"{self.name} waits for {other.name}")

    def set_sync_debug_mode(mode):  # as torch's
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        modes.append(mode)

    def step():
        order.append("step")
        raise RuntimeError("called a synchronizing CUDA operation")

    with gpu.pretended_gpu(), warnings.catch_warnings(record=True) as seen, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
        patch.setattr(torch.cuda, "set_sync_debug_mode", set_sync_debug_mode)
        patch.setattr(graph, "_side_stream", lambda: Stream("side"))
        with pytest.raises(RuntimeError, match="synchronizing"):
            graph.captured(step)
    assert order == ["side waits for main", "step", "main waits for side"]
    assert modes == ["error", "default"] and not seen


def test_torchs_graph_takes_the_arguments_of_the_pretended_one():
    assert {"stream", "capture_error_mode"} <= set(inspect.signature(torch.cuda.graph).parameters)
    assert {"Stream", "stream", "current_stream", "CUDAGraph", "get_sync_debug_mode", "set_sync_debug_mode"} <= set(dir(torch.cuda))
    assert hasattr(torch.cuda.CUDAGraph, "replay") and hasattr(torch.cuda.Stream, "wait_stream")
