"""Tests of one engine in a process of its own, because vLLM changes torch for the whole process. `test_vllm.py` runs them."""

import contextlib
import weakref

import pytest
import torch

from mth.config.schema import ModelConfig
from mth.foundations.errors import EngineError, UserError
from mth.models.load import load_policy
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine
from mth.rollout.player import ChatRenderer, Player
from mth.rollout.vllm import transfer
from mth.rollout.vllm.core import MAX_BATCHED_TOKENS_CPU, EngineSpec, LocalCore, describe_failure
from mth.rollout.vllm.engine import VllmEngine
from mth.tasks import load_tasks
from mth.tickets.ticket import attached_ticket
from mth.training.batches import collate
from mth.training.logprobs import completion_logprobs
from mth.training.prompts import prompts
from tests.conftest import make_config
from tests.tickets.models import ticket_of

CONFIG = make_config().rollout
PREFIX = 300  # tokens: more than two blocks of vLLM's prefix cache, so a second call hits it
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def policy():
    return load_policy(ModelConfig())


@pytest.fixture(scope="module")
def core():
    torch.set_num_threads(1)  # other tests may run on the other core
    return LocalCore()


@pytest.fixture
def engine(policy, core):
    return restored(policy, core, 99)


@contextlib.contextmanager
def base_weights(policy):
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in policy.model.named_parameters():
            parameter.data.copy_(before[name])


@pytest.fixture(autouse=True)
def same_base(policy):
    with base_weights(policy):
        yield


def restored(policy, core, percent):
    former = attached_ticket(policy.model.parameters())  # of an engine that a test still holds
    if former is not None:
        former.detach()
    return VllmEngine(policy, ticket_of(policy.model, percent), CONFIG, core)


def requests(count=6, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(10, 1000, (PREFIX,), generator=generator).tolist()
    return [Request(shared + torch.randint(10, 1000, (1 + i,), generator=generator).tolist(), 2**62 + i) for i in range(count)]


def gap(policy, engine, temperature=1.0):
    """Largest difference between the engine's log-probabilities of what it sampled and the trainer's."""
    asked = requests()
    worst = 0.0
    for request, reply in zip(asked, engine.generate(asked, 12, temperature), strict=True):
        ids = torch.tensor([[*request.prompt, *reply.ids]])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, len(request.prompt) :] = True
        with torch.no_grad():
            expected, _ = completion_logprobs(policy.model, ids, mask, temperature or 1.0)
        worst = max(worst, (expected - torch.tensor(reply.logprobs)).abs().max().item())
    return worst


def move(ticket, step, scale=0.05):
    """Change the trainer's model as an optimizer step would."""
    ticket.values.data.add_(scale * torch.randn(ticket.active_parameters, generator=torch.Generator().manual_seed(step)))
    ticket.write()
    return ticket.values.detach()


@pytest.mark.parametrize("percent", [0, 99, 99.9])
def test_logprobs_are_the_trainers_after_every_update(policy, core, percent):
    engine = restored(policy, core, percent)
    for step in range(4):
        if step:
            before = gap(policy, engine)
            sent = engine.sync(move(engine.ticket, step, 0.002 if percent == 0 else 0.05))
            assert sent == 4 * engine.ticket.active_parameters
            assert before <= TOLERANCE
        for temperature in (0.0, 1.0, 0.7):
            assert gap(policy, engine, temperature) <= TOLERANCE
        greedy = [reply.ids for reply in engine.generate(requests(), 24, 0.0)]
        assert greedy == [reply.ids for reply in HfEngine(policy, engine.ticket, CONFIG).generate(requests(), 24, 0.0)]


def test_an_update_that_does_not_arrive_shows(policy, engine):
    """With the trainer one step ahead, log-probabilities differ by far more than the tolerance, so the measure is sharp."""
    gap(policy, engine)
    move(engine.ticket, 1)
    assert gap(policy, engine) > 100 * TOLERANCE


def test_a_forgotten_reset_of_the_prefix_cache_shows(policy, engine, monkeypatch):
    gap(policy, engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine.core.llm, "reset_prefix_cache", lambda: True)
        engine.sync(move(engine.ticket, 1))
        assert gap(policy, engine) > 100 * TOLERANCE
    engine.sync(engine.ticket.values.detach())
    assert gap(policy, engine) <= TOLERANCE
    monkeypatch.setattr(engine.core.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(EngineError, match="did not reset its prefix cache"):
        engine.sync(engine.ticket.values.detach())


@pytest.mark.parametrize("part", ["k_proj.weight", "v_proj.bias", "up_proj.weight", "down_proj.weight"])
def test_a_wrong_offset_stops_the_run_before_anything_is_written(policy, core, monkeypatch, part):
    true = transfer.locate

    def shifted(model, name):
        target, offset = true(model, name)
        return target, offset + (-7 if offset else 7) * (name.startswith("model.layers.2.") and name.endswith(part))

    ticket = ticket_of(policy.model, 90)
    monkeypatch.setattr(transfer, "locate", shifted)
    with pytest.raises(EngineError, match=rf"layers\.2\.\w+\.{part}: .*hold"):
        VllmEngine(policy, ticket, CONFIG, core)


def test_a_wrong_offset_shows_in_the_logprobs(policy, engine):
    """The log-probabilities would show values written one row off, even without the check of the indices."""
    targets = engine_targets(engine)
    name = "model.layers.1.mlp.up_proj.weight"
    target, positions = targets[name]
    targets[name] = target, positions - 192
    engine.sync(move(engine.ticket, 1))
    assert gap(policy, engine) > TOLERANCE


def engine_targets(engine):
    return engine.core.llm.collective_rpc(lambda worker: worker.weight_transfer_engine.targets)[0]


def test_a_skipped_tensor_stops_the_run_with_its_name(policy, engine):
    name = "model.layers.3.self_attn.q_proj.weight"
    lost = engine_targets(engine).pop(name)
    with pytest.raises(EngineError, match=rf"{name}: 0 of {lost[1].numel()} entries were written"):
        engine.sync(move(engine.ticket, 1))


def test_a_skipped_tensor_of_a_full_load_stops_the_run_with_its_name(policy, core, monkeypatch):
    engine = restored(policy, core, 0)
    name = "model.layers.1.mlp.gate_proj.weight"
    model = core.llm.collective_rpc(lambda worker: worker.weight_transfer_engine.model)[0]
    load = model.load_weights
    monkeypatch.setattr(model, "load_weights", lambda pairs: load([(n, t) for n, t in pairs if n != name]))
    with pytest.raises(EngineError, match=rf"{name}: [\d,]+ of [\d,]+ entries hold what was sent"):
        engine.sync(move(engine.ticket, 1, 0.01))


def test_a_tensor_that_vllm_does_not_have_is_named(engine):
    with pytest.raises(EngineError, match=r"no place for the tensor model\.layers\.9\.mlp\.up_proj\.weight$"):
        engine.core.set_indices({"model.layers.9.mlp.up_proj.weight": torch.tensor([0])})


def test_a_weight_that_vllm_derives_by_itself_is_named(policy, core, engine):
    attention = core.llm.collective_rpc(lambda worker: worker.weight_transfer_engine.model.model.layers[1].self_attn)[0]
    attention.absorbed = torch.nn.Parameter(torch.ones(3))
    try:
        with pytest.raises(EngineError, match=r"the model's model\.layers\.1\.self_attn\.absorbed is filled by no tensor of the trainer"):
            restored(policy, core, 99)
    finally:
        del attention.absorbed


def test_packed_weights_are_refused():
    with pytest.raises(ValueError, match="cannot be written in place"):
        transfer.flat_view(torch.empty(0))


def test_a_later_engine_starts_from_the_trainers_weights(policy, core):
    first = restored(policy, core, 99)
    first.sync(move(first.ticket, 1))
    second = restored(policy, core, 99.9)
    assert gap(policy, second) <= TOLERANCE


def test_conversations_of_several_turns_agree(policy, engine):
    """Alphabet Sort has two turns. Greedy, both engines give the same rollouts. Sampled, vLLM's log-probabilities are the trainer's."""
    config = make_config(task={"name": "alphabet_sort", "train_rows": 16}, train={"batch_size": 32}, rollout={"max_tokens": 64})
    task, _ = load_tasks(config)

    def rollouts(engine, temperature):
        player, episodes = Player(engine, ChatRenderer(policy.tokenizer)), prompts(task, config, 1)
        return player.rollout_episodes(task, episodes, group_size=4, max_tokens=64, temperature=temperature, seed=("turns",))

    mine, theirs = rollouts(HfEngine(policy, engine.ticket, CONFIG), 0.0), rollouts(engine, 0.0)
    assert [r.ids for r in mine] == [r.ids for r in theirs]
    assert [r.reward for r in mine] == [r.reward for r in theirs]
    sampled = rollouts(engine, 1.0)
    assert max(len(r.replies) for r in sampled) > 1
    for batch in collate(sampled, [0.0] * len(sampled), 4096, torch.device("cpu")):
        with torch.no_grad():
            expected, _ = completion_logprobs(policy.model, batch.ids, batch.loss_mask, 1.0)
        assert (expected - batch.rollout_logprobs).abs().max() <= TOLERANCE


def test_seeds_survive_batching_and_order(engine):
    asked = [Request(requests(1)[0].prompt, seed) for seed in range(12)]
    whole = engine.generate(asked, 20, 1.0)
    parts = [reply for i in (9, 6, 3, 0) for reply in engine.generate(asked[i : i + 3], 20, 1.0)[::-1]][::-1]
    assert [c.ids for c in whole] == [c.ids for c in parts]
    assert len({tuple(c.ids) for c in whole}) == 12


def test_prompts_that_do_not_fit_one_pass_together(engine):
    """On a CPU, vLLM fails on a seeded prompt with chunked prefill."""
    generator = torch.Generator().manual_seed(1)
    asked = [Request(torch.randint(10, 1000, (390,), generator=generator).tolist(), i) for i in range(24)]
    assert sum(len(request.prompt) for request in asked) > 2 * MAX_BATCHED_TOKENS_CPU
    whole = engine.generate(asked, 4, 1.0)
    assert [reply.ids for reply in whole[20:]] == [reply.ids for reply in engine.generate(asked[20:], 4, 1.0)]


def test_replies_end_at_a_stop_token_or_at_the_limit(engine):
    engine.stop_ids = list(range(300))
    replies = engine.generate([Request(r.prompt, i) for i, r in enumerate(requests(20))], 16, 1.0)
    for reply in replies:
        assert all(token >= 300 for token in reply.ids[:-1])
        assert reply.stopped == (reply.ids[-1] < 300)
        assert len(reply.ids) == len(reply.logprobs) <= 16
        assert reply.stopped or len(reply.ids) == 16
    assert any(reply.stopped for reply in replies)


def test_replies_are_told_while_others_go_on(engine):
    told, stops = [], frozenset(range(0, 1121, 9))
    plain = engine.generate(requests(), 40, 1.0, stops, ended=told.append)
    assert told == []  # on a CPU
    engine.on_cpu = False
    assert engine.generate(requests(), 40, 1.0, stops, ended=told.append) == plain
    assert sorted(place for pairs in told for place, _ in pairs) == list(range(6))
    assert all(reply == plain[place] for pairs in told for place, reply in pairs)
    assert sum(map(bool, told)) > 1 and [] in told

    def refuse(pairs):
        raise UserError("task.grader: the math-verify process does not start")

    with pytest.raises(UserError, match=r"^task\.grader: the math-verify process does not start"):
        engine.generate(requests(), 4, 1.0, ended=refuse)


def test_stops_of_a_call_end_replies_beside_the_models_own(engine):
    own = engine.stop_ids
    asked = [Request(r.prompt, i) for i, r in enumerate(requests(9))]
    found = engine.generate(asked, 16, 1.0, frozenset(range(300)))
    engine.stop_ids = sorted({*own, *range(300)})
    assert found == engine.generate(asked, 16, 1.0)
    engine.stop_ids = own


def test_context_is_checked_before_anything_is_generated(engine, monkeypatch):
    monkeypatch.setattr(engine.core, "generate", None)
    with pytest.raises(UserError, match=r"a prompt of 1020 tokens \+ max_tokens=8 exceeds the model's context of 1024"):
        engine.generate([Request([5] * 1020, 0)], 8, 1.0)


def test_a_closed_engine_frees_its_model(policy, core):
    restored(policy, core, 99)
    model = weakref.ref(core.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model)
    assert model() is not None
    core.close()
    assert model() is None


def test_torch_of_the_trainer_is_left_alone(policy, core):
    core.close()
    state, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    engine = restored(policy, core, 99)
    engine.generate(requests(), 8, 1.0)
    engine.sync(engine.ticket.values.detach())
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == (threads, dtype, True)
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_an_open_engine_does_not_take_another_model(core, engine):
    with pytest.raises(UserError, match="already holds another model"):
        core.open(EngineSpec(core.spec.model_config, "bfloat16", 1024, 8, 0.4, None))


def test_unsupported_head_size(core, engine):
    model_config = core.spec.model_config | {"num_attention_heads": 12}
    with pytest.raises(UserError, match=r"head size 16 is not supported by vLLM on the CPU .* use rollout=hf"):
        LocalCore().open(EngineSpec(model_config, "float32", 1024, 8, 0.4, None))


def test_failures_of_the_engine_are_one_line(engine, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(engine.core.llm, "generate", fail)
    with pytest.raises(EngineError, match=r"out of memory \(CUDA out of memory\.\); change rollout\.gpu_memory_utilization"):
        engine.generate(requests(), 4, 1.0)
    assert "\n" not in describe_failure(RuntimeError("a\nb"))
    assert "out of memory" not in describe_failure(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_an_engine_that_failed_is_not_used_again(policy, core, engine, monkeypatch):
    """vLLM keeps the requests of a failed call and would answer them in the next call, so the next run gets a new engine."""
    broken = core.llm
    step = broken.llm_engine.step
    monkeypatch.setattr(broken.llm_engine, "step", lambda: step() and 1 / 0)
    with pytest.raises(EngineError, match="failed while generating: ZeroDivisionError"):
        engine.generate(requests(), 12, 1.0)
    again = restored(policy, core, 99)
    assert core.llm is not broken
    assert gap(policy, again) <= TOLERANCE
