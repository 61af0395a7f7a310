"""Attention of a line equals attention under a mask, and so do its gradients."""

import pytest
import torch

from mth.training import lines
from mth.training.lines import Line, line_attention
from tests import flash_on_cpu as on_cpu

flash_on_cpu = on_cpu.flash_on_cpu
CPU = torch.device("cpu")


def line_of(prompts, replies, alone):
    """A line and the mask [T, T] that says the same. replies: for each prompt, lengths of its replies."""
    answers = [count for group in replies for count in group]
    lengths = [*prompts, *answers, *alone]
    piece = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    group = [*range(len(prompts)), *(i for i, counts in enumerate(replies) for _ in counts), *range(100, 100 + len(alone))]
    group = torch.tensor(group)[piece]
    own, prompt = piece[:, None] == piece[None, :], (group[:, None] == group[None, :]) & (piece[None, :] < len(prompts))
    mask = torch.ones(len(piece), len(piece), dtype=torch.bool).tril() & (own | prompt)
    return Line.of(prompts, replies, alone, CPU), mask


LINES = {
    "two groups and one alone": ([17, 4], [[9, 30, 1], [6, 2]], [12]),
    "nothing shared": ([], [], [5, 1, 40]),
    "one token each": ([1], [[1, 1]], []),
    "a long prompt": ([200], [[3, 2, 70]], []),
}


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize("name", LINES)
def test_a_line_equals_a_mask(name, heads, key_heads):
    line, mask = line_of(*LINES[name])
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(1, count, len(mask), 16, generator=draw, dtype=torch.float32) for count in (heads, key_heads, key_heads)]
    given.append(torch.randn(1, len(mask), heads, 16, generator=draw))

    def attend(query, key, value):
        return line_attention(torch.nn.Module(), query, key, value, None, line=line)[0]

    def expected(query, key, value):
        key, value = (each.repeat_interleave(heads // key_heads, 1) for each in (key, value))
        scores = (query @ key.mT / 4).masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2)

    found = lines._with_gradients(given, attend)
    right = lines._with_gradients([each.double() for each in given], expected)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6)


def test_other_kinds_of_attention_are_refused():
    line, _ = line_of([], [], [4])
    parts = [torch.zeros(1, 2, 4, 8) for _ in range(3)]
    for given in ({"sliding_window": 3}, {"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"unheard_of": 1}, {"dropout": 0.1}, {"line": None}):
        with pytest.raises(RuntimeError, match="attention with"):
            line_attention(torch.nn.Module(), *parts, None, **({"line": line} | given))


def trial(dtype=torch.bfloat16, repeats=False):
    lines._trial.cache_clear()
    return lines._trial(CPU, dtype, 4, 2, 16, repeats)


def test_a_device_without_the_operation_says_so():
    assert "_flash_attention_forward" in trial()


@pytest.mark.usefixtures("flash_on_cpu")
def test_the_trial_finds_wrong_results_and_wrong_gradients(monkeypatch):
    assert trial() is None and trial(torch.float32) is None
    forward, backward = lines._flash, lines._flash_backward

    def spoilt(function, number, change):
        def spoil(*arguments):
            found = list(function(*arguments))
            found[number] = change(found[number])
            return found

        return spoil

    def twice(number):  # right once, then something else
        calls = []
        return spoilt(backward, number, lambda part: part * (1 + 1e-3 * len(calls.append(0) or calls)))

    def half(part):
        return part / 2

    for name, function in (
        ("results", spoilt(forward, 0, half)),
        ("results", spoilt(forward, 1, half)),
        ("queries", spoilt(backward, 0, half)),
        ("keys", spoilt(backward, 1, half)),
        ("values", spoilt(backward, 2, half)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(lines, "_flash" if name == "results" else "_flash_backward", function)
            assert trial() == f"flash attention gives other {name} than attention under a mask"
    assert trial(repeats=True) is None
    monkeypatch.setattr(lines, "_flash_backward", twice(0))
    assert trial() is None
    assert trial(repeats=True) == "flash attention gives other queries the second time"
