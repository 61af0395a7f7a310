"""Sampled gradients by kernels, which run in Triton's interpreter, against fp64 and against dense gradients."""

import pytest
import torch
from transformers import Qwen2Config

import tests.pretend_cuda as gpu
from mth.config.choices import WeightGradient
from mth.config.schema import OptimizerConfig
from mth.foundations.errors import UserError
from mth.tickets import products
from mth.tickets.products import add_products, spans_of, transposed
from mth.tickets.route import choose_sampled
from tests.tickets.models import OTHERS, SAMPLED, assert_same_by_tensor, small, ticket_of

DENSE = OptimizerConfig(weight_gradient=WeightGradient.dense)
SHAPES = {  # tokens, rows, columns, active entries
    "odd": (333, 17, 29, 61),
    "one token": (1, 5, 3, 7),
    "one entry": (70, 9, 11, 1),
    "one row": (300, 1, 40, 13),
    "one column": (257, 40, 1, 13),
    "every entry": (64, 6, 7, 42),
    "few entries in many rows": (512, 200, 3, 9),
    "two spans": (500, 12, 16, 30),
    "several spans": (1300, 12, 16, 30),
}


@pytest.fixture
def model():
    """Its MLP widens threefold, so that it can write its features side by side."""
    return small(Qwen2Config, hidden_size=32, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)  # fmt: skip


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_those_of_fp64_and_repeat_their_bits(monkeypatch, random, name, dtype):
    tokens, rows, columns, count = SHAPES[name]
    x, dy = (torch.randn(tokens, width, generator=random).to(dtype) for width in (columns, rows))
    index = torch.randperm(rows * columns, generator=random)[:count].sort().values.int()
    expected = (dy.double().t() @ x.double()).flatten()[index.long()] + 2
    monkeypatch.setattr(products, "PROGRAMS", 20 if name.endswith("spans") else 1)
    found = []
    for by_feature in (False, False, True):
        out = torch.full((count,), 2.0)
        operands = (dy.t().contiguous(), x.t().contiguous()) if by_feature else (transposed(dy), transposed(x))
        add_products(out, index, *operands)
        found.append(out)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    size = (dy.double().abs().t() @ x.double().abs()).flatten()[index.long()] + 2
    assert ((found[0] - expected).abs() <= 1e-6 * size).all()


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 3), (3, 130), (200, 64)])
def test_transposing(shape, dtype, random):
    x = torch.randn(*shape, generator=random).to(dtype)
    wide = torch.cat([x, x], 1)
    for given in (x, wide[:, : shape[1]], x.t().contiguous().t()):
        result = transposed(given)
        assert torch.equal(result, x.t()) and result.stride(1) == 1 and result.stride(0) % 64 == 0


def test_spans_cover_all_tokens_and_keep_the_input_in_the_cache():
    for count in (1, 100, 20_000, 137_000):
        for tokens in (1, 256, 1000, 16_384):
            for width in (896, 1536, 8960):
                span, spans = spans_of(count, tokens, 2 * width)
                assert span % products.TOKENS == 0 and (spans - 1) * span < tokens <= spans * span
                assert span * 2 * width <= products.SPAN_BYTES + 2 * width * products.TOKENS
    assert spans_of(13_762, 16_384, 2 * 1536) == (8192, 2) and spans_of(39, 16_384, 2 * 1536) == (256, 64)


def gradient_there(model, ticket, config, rows, tokens):
    """The flat gradient of a model on the pretended GPU, on the CPU; and the lines of choose_sampled."""
    from mth.tickets.sampled_gradients import sampled_gradients

    ticket.sampled, lines = choose_sampled(model, ticket, config)
    ticket.zero_gradient()
    with sampled_gradients(model, ticket):
        ids = torch.randint(model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(1)).to(gpu.DEVICE)
        logits = model(input_ids=ids).logits.float()
        torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    return ticket.values.grad.inner.clone(), lines


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("tokens", "transposes"), [(16, 8), (19, 11)])  # of 48 tokens, gate, up and down need none
def test_same_gradient_as_the_dense_one(model, launched, dtype, tolerance, tokens, transposes):
    model.to(dtype)
    with gpu.pretended_gpu():
        gpu.move(model)
        ticket = ticket_of(model, 95)
        dense, _ = gradient_there(model, ticket, DENSE, 3, tokens)
        assert launched["sum_products"] == 0
        sampled, lines = gradient_there(model, ticket, SAMPLED, 3, tokens)
    assert lines == ["model.embed_tokens.weight: dense weight gradient, because on a GPU it stays so for LM heads and embeddings"]
    assert len(ticket.sampled) == 7 and launched["sum_products"] == 2 * 7  # a trial, and a pass
    assert launched["transpose"] == 11 + transposes  # the input of q, k and v, and that of gate and up, once
    assert_same_by_tensor(ticket, sampled, dense, tolerance)
    assert not torch.equal(sampled, dense)


@pytest.mark.usefixtures("launched")
def test_other_architectures():
    for kind, make in OTHERS.items():
        with gpu.pretended_gpu():
            model = gpu.move(make())
            ticket = ticket_of(model, 98)
            dense, _ = gradient_there(model, ticket, DENSE, 3, 20)
            sampled, _ = gradient_there(model, ticket, SAMPLED, 3, 20)
        assert bool(ticket.sampled) == (kind[:4] != "gpt2") and not any("head" in name or "embed" in name for name in ticket.sampled)
        torch.testing.assert_close(sampled, dense, rtol=1e-4, atol=1e-7)


def test_without_kernels_sampled_gradients_are_refused(model):
    with gpu.pretended_gpu():
        ticket = ticket_of(gpu.move(model), 95)
        with pytest.raises(
            UserError, match=r"optimizer.weight_gradient=sampled needs Triton on a GPU; install triton, or leave the key at auto"
        ):
            choose_sampled(model, ticket, SAMPLED)
        assert choose_sampled(model, ticket, OptimizerConfig()) == (frozenset(), [])
