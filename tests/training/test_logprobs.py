"""Log-probabilities in chunks against those of the whole batch."""

import weakref

import pytest
import torch

from mth.training import logprobs as logprobs_module
from mth.training.logprobs import Layout, chosen_logprobs, completion_backward, completion_logprobs


def test_chosen_logprobs_are_those_of_a_categorical_distribution():
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden, targets = torch.randn(23, 16, requires_grad=True), torch.randint(50, (23,))
    chosen, entropy = chosen_logprobs(head, hidden, targets, 0.7)
    expected = torch.distributions.Categorical(logits=head(hidden) / 0.7)
    torch.testing.assert_close(chosen, expected.log_prob(targets))
    torch.testing.assert_close(entropy, expected.entropy())
    gradient = torch.autograd.grad(chosen.sum(), [hidden, head.weight])
    torch.testing.assert_close(torch.autograd.grad(expected.log_prob(targets).sum(), [hidden, head.weight]), gradient)


@pytest.mark.parametrize("trained", ["all", "the head", "the first block"])
def test_a_loss_goes_back_in_chunks_that_are_computed_once_and_held_one_at_a_time(small_model, monkeypatch, trained):
    vocabulary = small_model.config.vocab_size
    ids = torch.randint(10, 200, (3, 14))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    weights = torch.randn(mask.sum())
    small_model.requires_grad_(trained == "all")
    if trained != "all":
        part = small_model.lm_head if trained == "the head" else small_model.base_model.layers[0]
        small_model.lm_head.weight = torch.nn.Parameter(small_model.lm_head.weight.detach().clone(), requires_grad=False)  # no longer tied
        part.requires_grad_(True)
    parameters = [p for p in small_model.parameters() if p.requires_grad]
    expected, entropies = completion_logprobs(small_model, ids, mask, 0.7)
    whole = torch.autograd.grad((expected * weights).square().sum(), parameters)

    heads, seen, held = [], [], []

    def loss(logprobs, entropy, chunk):
        seen.append((logprobs.detach(), entropy))
        return (logprobs * weights[chunk]).square().sum()

    def pack(saved):
        if saved.dim() == 2 and saved.shape[1] == vocabulary and saved.shape[0] <= 5:
            assert all(other() is None for other in held)
            held.append(weakref.ref(saved))
        return saved

    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", vocabulary * 5)
    small_model.lm_head.register_forward_hook(lambda module, inputs, output: heads.append(output.shape[0]))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        completion_backward(small_model, ids, mask, 0.7, loss)
    assert heads == [5] * 7 + [4] and len(held) == len(heads)
    torch.testing.assert_close(torch.cat([s[0] for s in seen]), expected.detach())
    torch.testing.assert_close(torch.cat([s[1] for s in seen]), entropies)
    torch.testing.assert_close([p.grad for p in parameters], list(whole), rtol=1e-4, atol=1e-4)


def test_completion_logprobs_ignore_padding_on_the_right(small_model):
    ids = torch.randint(10, 200, (1, 12))
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 5:9] = True
    alone, _ = completion_logprobs(small_model, ids, mask, 1.0)
    padded_ids, padded_mask = torch.nn.functional.pad(ids, (0, 7)), torch.nn.functional.pad(mask, (0, 7))
    padded, _ = completion_logprobs(small_model, padded_ids, padded_mask, 1.0)
    torch.testing.assert_close(padded, alone)
    full = small_model(input_ids=ids).logits.log_softmax(-1)
    torch.testing.assert_close(alone, torch.stack([full[0, t - 1, ids[0, t]] for t in range(5, 9)]))


def test_gradients_of_a_shared_prompt_do_not_depend_on_the_order_of_threads(small_model):
    prompt, replies = 4, 1020  # replies of one token, all predicted from the prompt's last position
    ids = torch.randint(10, 200, (1, prompt + replies))
    mask = (torch.arange(prompt + replies) >= prompt)[None]
    previous = (torch.arange(prompt + replies) - 1).clamp(max=prompt - 1)[None]
    positions = torch.arange(prompt + replies).clamp(max=prompt)[None]
    layout = Layout(positions, previous, torch.ones(1, 1, prompt + replies, prompt + replies, dtype=torch.bool).tril())
    weights = torch.randn(replies)
    norm = small_model.base_model.norm.weight

    def gradient():
        logprobs, _ = completion_logprobs(small_model, ids, mask, 1.0, layout)
        return torch.autograd.grad((logprobs * weights).sum(), norm)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(10))
