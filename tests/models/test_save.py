"""A saved model is read by AutoModelForCausalLM and AutoTokenizer as by mth: the same token ids, the same greedy replies."""

import json
import os
import random
import shutil
import stat

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mth.config.schema import ModelConfig, RolloutConfig
from mth.export import export
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models.load import load_policy
from mth.models.save import save_model
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine
from mth.runs.checkpoint import save_checkpoint
from mth.tasks.arithmetic import draw_problems, episodes
from mth.tickets.draw import draw_ticket
from tests.conftest import make_config
from tests.tickets.models import ticket_of

PIECES = [*"aZ9_,.<|>\\é\u0301日\n\t '", "  ", "\n\n", "Ada", "Smith", "Lovelace", "im_start", "<|im_end|>", "12"]
TOKENS = 40  # what arithmetic gives a reply


def questions():
    return [episode.turns[0] for episode in episodes(draw_problems(64, 0, evaluation=True))]


def random_texts(count=500):
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=40)) for _ in range(count)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The embedded model with a trained ticket, exported. The umask is stricter than usual."""
    folder = tmp_path_factory.mktemp("export")
    config = make_config()
    policy = load_policy(config.model)
    ticket = draw_ticket(policy.model, config)
    ticket.values.data.mul_(1.05)
    save_checkpoint(folder / "checkpoint.safetensors", ticket, config, 1, torch.optim.SGD([ticket.values]), {})
    before = os.umask(0o027)
    try:
        export(folder / "checkpoint.safetensors", folder / "out")
    finally:
        os.umask(before)
    return folder / "out"


@pytest.fixture(params=["embedded", "exported"])
def folder(request):
    return TINY_MODEL if request.param == "embedded" else request.getfixturevalue("exported")


def test_auto_tokenizer_gives_the_same_ids(folder, tokenizer):
    plain = AutoTokenizer.from_pretrained(folder)
    for text in [*questions(), *random_texts()]:
        ids = tokenizer(text)["input_ids"]
        assert plain(text)["input_ids"] == ids, text
        assert plain.decode(ids) == tokenizer.decode(ids)
    assert (plain.eos_token_id, plain.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.fixture
def one_thread():
    """Threads that wait for each other are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_greedy_replies_equal_mths_own(folder):
    policy = load_policy(ModelConfig(path=str(folder), device="cpu"))
    plain, model = AutoTokenizer.from_pretrained(folder, padding_side="left"), AutoModelForCausalLM.from_pretrained(folder)
    chats = [[{"role": "user", "content": question}] for question in questions()]
    batch = plain.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
    replies = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False)[:, batch["input_ids"].shape[1] :]
    prompts = [policy.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    engine = HfEngine(policy, ticket_of(policy.model, 99), RolloutConfig())
    completions = engine.generate([Request(prompt, 0) for prompt in prompts], TOKENS, 0.0)
    assert plain.batch_decode(replies, skip_special_tokens=True) == [
        policy.tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions
    ]
    assert sum(completion.stopped for completion in completions) > 50


def test_files_have_the_mode_of_new_files(exported, tmp_path, small_policy):
    assert {stat.S_IMODE(file.stat().st_mode) for file in exported.iterdir()} == {0o640}
    before = os.umask(0o022)
    try:
        save_model(small_policy.model, small_policy.tokenizer, tmp_path / "m")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "m").iterdir()} == {0o644}


def test_the_embedded_folder_is_what_is_saved(exported):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (exported / name).read_bytes() == (TINY_MODEL / name).read_bytes(), name


def test_a_tokenizer_that_was_saved_otherwise_is_put_right(tmp_path, tokenizer):
    """As saved by transformers: AutoTokenizer reads other ids, mth does not, and an export is right again."""
    shutil.copytree(TINY_MODEL, tmp_path / "m")
    settings = tmp_path / "m" / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    settings.write_text(json.dumps({key: value for key, value in kept.items() if key != "trust_remote_code"}))
    text = "Sort JamesSmith, AdaLovelace"
    assert AutoTokenizer.from_pretrained(tmp_path / "m")(text)["input_ids"] != tokenizer(text)["input_ids"]
    policy = load_policy(ModelConfig(path=str(tmp_path / "m")))
    assert policy.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    save_model(policy.model, policy.tokenizer, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == kept


def test_a_tokenizer_that_does_not_survive_is_refused(tmp_path, small_policy, monkeypatch):
    monkeypatch.setattr("mth.models.save.as_written", json.dumps)
    with pytest.raises(UserError, match="AutoTokenizer reads another tokenizer than was saved there"):
        save_model(small_policy.model, small_policy.tokenizer, tmp_path / "m")
