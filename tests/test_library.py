"""docs/library.md, run as it stands: the examples in the loops that people have, on the embedded model."""

import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from mth.foundations.paths import TINY_MODEL

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text()
BLOCKS = {
    title: code
    for section in PAGE.split("\n## ")[1:]
    for title in [section.splitlines()[0]]
    if (code := "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)))
}
LOOPS = ["Ten lines of PyTorch", "The Trainer of transformers", "TRL: supervised fine-tuning", "TRL: GRPO", "Accelerate"]


@pytest.fixture(scope="module")
def first():
    """The names that the page's first example defines, and what it prints."""
    printed = []
    names = {"print": lambda *what: printed.append(" ".join(map(str, what)))}
    exec(BLOCKS[LOOPS[0]], names)
    return names, printed


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's three calls, on a folder of this machine."""
    folder, calls = tmp_path / "hub", []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: calls.append((repo_id, options)))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}/tree/main/"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, allow_patterns: str(folder / repo_id))
    return folder, calls


def run(title, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(first[0])
    exec(BLOCKS[title], names)
    return names


def assert_trained_ticket(model, ticket):
    """Exactly the ticket's entries differ from the base model, and the gradients of its dense tensors are gone."""
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    moved = 0
    for name, index in ticket._ticket.indices.items():
        changed = (model.get_parameter(name) != base.get_parameter(name)).flatten()
        frozen = torch.ones_like(changed)
        frozen[index.long()] = False
        assert not changed[frozen].any(), name
        assert model.get_parameter(name).grad is None
        moved += int(changed.sum())
    assert moved > 0.9 * ticket.active_parameters


@pytest.mark.parametrize("title", LOOPS)
def test_a_loop_trains_the_ticket_and_nothing_else(title, first, tmp_path, monkeypatch):
    names = first[0] if title == LOOPS[0] else run(title, first, tmp_path, monkeypatch)
    model, ticket = names["model"], names["ticket"]
    assert_trained_ticket(model, ticket)
    if "trainer" not in names:
        with torch.no_grad():
            after, batch = model(**names["batch"], labels=names["batch"]["input_ids"]).loss, names["batch"]
            with ticket.off():
                assert after < model(**batch, labels=batch["input_ids"]).loss - 0.5
        return
    history = [entry for entry in names["trainer"].state.log_history if "grad_norm" in entry]
    assert len(history) == 3 and all(entry["grad_norm"] > 0 for entry in history)
    if "GRPO" not in title:
        assert history[-1]["loss"] < history[0]["loss"] - 0.5
    state = names["trainer"].optimizer.state_dict()["state"]
    assert {tensor.numel() for moments in state.values() for tensor in moments.values()} == {1, ticket.active_parameters}


def test_the_page_shows_what_the_first_example_prints(first):
    assert f"`{first[1][-1]}`" in PAGE


def test_the_mask_is_that_of_mth_train(first):
    from mth.config.schema import Config, SparsityConfig
    from mth.tickets.draw import draw_ticket

    drawn = draw_ticket(AutoModelForCausalLM.from_pretrained(TINY_MODEL), Config(sparsity=SparsityConfig(99.0), mask_seed=42))
    assert drawn.mask_sha256 == first[0]["ticket"].mask_sha256


def test_masks(first, tmp_path, monkeypatch):
    run("Masks", first, tmp_path, monkeypatch)


def test_save_load_compare_merge(first, tmp_path, monkeypatch):
    names = run("Save, load, compare, merge", first, tmp_path, monkeypatch)
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL).state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in names["model"].state_dict().items())
    assert torch.equal(names["again"].values, names["ticket"].values)
    assert_trained_ticket(names["other"], names["again"])
    assert "| loss before | " in (tmp_path / "my-ticket" / "README.md").read_text()


def test_peft_and_the_hub(first, tmp_path, monkeypatch, hub):
    names = run("PEFT and the hub", first, tmp_path, monkeypatch)
    folder, calls = hub
    assert calls == [("me/my-ticket", {"private": True, "exist_ok": True})]
    assert sorted(file.name for file in (folder / "me/my-ticket").iterdir()) == ["README.md", "ticket.json", "ticket.safetensors"]
    card = (folder / "me/my-ticket/README.md").read_text()
    for text in (
        "| mask_seed | 42 |",
        "| pass@1 | 0.12 before, 0.61 after |",
        "| task | doubling |",
        'mth.load_ticket(model, "me/my-ticket")',
    ):
        assert text in card
    assert names["again"].mask_sha256 == names["ticket"].mask_sha256


def test_every_example_of_the_page_is_run():
    assert list(BLOCKS) == [*LOOPS, "Masks", "Save, load, compare, merge", "PEFT and the hub"]


def test_a_trainer_resumes_a_bf16_model_with_the_same_bits(first, tmp_path):
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    import mth

    tokenizer, values = first[0]["tokenizer"], []
    rows, collator = Dataset.from_dict(dict(tokenizer(first[0]["texts"]))), DataCollatorForLanguageModeling(tokenizer, mlm=False)
    for start in (None, tmp_path / "checkpoint-2"):
        model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.bfloat16)
        ticket = mth.attach(model, sparsity=99, mask_seed=42)
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, save_steps=2, report_to="none", use_cpu=True, per_device_train_batch_size=2
        )
        optimizers = (ticket.optimizer(torch.optim.AdamW, lr=1e-4), None)
        Trainer(model, arguments, train_dataset=rows, data_collator=collator, optimizers=optimizers).train(start)
        values.append(ticket.values.detach())
        assert not torch.equal(values[-1], ticket._ticket.read())  # finer than bf16
    assert torch.equal(*values)
