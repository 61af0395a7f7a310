"""The compiled head of a GPU against the plain one, and what happens where no compiler works. Compiled for the CPU here."""

from functools import cache

import pytest
import torch

from mth.training import fused_head
from mth.training.fused_head import chosen_fused, compiled_head, fixed_rows, padded
from mth.training.logprobs import chosen_logprobs, chunk_rows


def head_and_input(dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    return torch.nn.Linear(16, 50, bias=bias).to(dtype), torch.randn(23, 16).to(dtype).requires_grad_(), torch.randint(50, (23,))


@pytest.mark.parametrize(("dtype", "bias"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_the_fused_head_computes_what_the_plain_one_does(dtype, bias):
    head, hidden, targets = head_and_input(dtype, bias)
    weights = torch.randn(23)
    results = []
    for function in (lambda: padded(chosen_fused, head, 0.7, 32, hidden, targets), lambda: chosen_logprobs(head, hidden, targets, 0.7)):
        chosen, entropy = function()
        assert chosen.shape == entropy.shape == (23,) and not entropy.requires_grad
        results.append((chosen, entropy, *torch.autograd.grad((chosen * weights).sum(), [hidden, *head.parameters()])))
    tolerance = {} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(results[0], results[1], **tolerance)


def test_it_compiles_as_a_whole(monkeypatch):
    monkeypatch.setattr(fused_head, "_known", {})
    monkeypatch.setattr(fused_head, "_compiled", lambda: compiled)
    compiled = torch.compile(chosen_fused, dynamic=False, fullgraph=True, backend="aot_eager")
    head, hidden, targets = head_and_input()
    function = fused_head._tried(head, (32, torch.float32, 0.7, True, True, True))
    assert function is compiled and head.weight.grad is None
    torch.testing.assert_close(padded(function, head, 0.7, 32, hidden, targets), chosen_logprobs(head, hidden, targets, 0.7))


def test_each_size_is_compiled_once_in_its_trial(monkeypatch):
    """Torch gives up after eight forms by default. A run has more: several sizes, with gradients and, for a reference, without."""
    made, compile = [], torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", torch._dynamo.config.recompile_limit)  # is restored at the end
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, **options, backend=backend))
    monkeypatch.setattr(fused_head, "_known", {})
    monkeypatch.setattr(fused_head, "_compiled", cache(fused_head._compiled.__wrapped__))
    head, hidden, targets = head_and_input(bias=True)
    for rows in range(24, 29):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                given = hidden.detach().requires_grad_(grad)
                function = fused_head._tried(head, (rows, torch.float32, 0.7, grad, True, grad))
                forms = len(made)
                chosen, _ = padded(function, head, 0.7, rows, given, targets)
            assert len(made) == forms  # the trial has compiled what training calls
            assert chosen.requires_grad is grad
    assert forms == 10
    torch.compiler.reset()


def test_without_a_compiler_the_plain_head_serves_after_one_line(monkeypatch, capsys):
    def fails():
        raise RuntimeError("no C compiler\nin /usr/bin")

    monkeypatch.setattr(fused_head, "_known", {})
    monkeypatch.setattr(fused_head, "_compiled", fails)
    head, *_ = head_and_input()
    assert [fused_head._tried(head, (32, torch.float32, 1.0, True, True, True)) for _ in range(2)] == [None, None]
    assert capsys.readouterr().out == "the head is not compiled, which is slower: RuntimeError: no C compiler\n"


def test_only_a_plain_head_on_a_gpu_is_compiled(monkeypatch):
    monkeypatch.setattr(fused_head, "_tried", lambda head, facts: facts)

    class OnGpu:
        device, dtype, requires_grad = torch.device("cuda"), torch.bfloat16, True

    head, hidden, _ = head_and_input()
    for name in fused_head.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    assert compiled_head(head, hidden, 1.0, 32) is None
    assert compiled_head(head, OnGpu(), 1.0, 32) == (32, torch.bfloat16, 1.0, True, True, True)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert compiled_head(head, OnGpu(), 1.0, 32) is None
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    head.forward = lambda x: x  # patched for a sampled gradient
    assert compiled_head(head, OnGpu(), 1.0, 32) is None


def test_chunks_on_a_gpu_have_few_sizes():
    assert chunk_rows(8192, 151_936, on_cpu=True) == 96
    assert chunk_rows(8192, 151_936, on_cpu=False) == 1760
    assert {chunk_rows(tokens, 151_936, on_cpu=False) for tokens in range(1, 16384, 7)} == {1024, 1760}
    assert {fixed_rows(tokens, 2**18) for tokens in range(1, 5000)} == {1024, 2048, 4096, 8192}
