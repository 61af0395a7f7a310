"""Tickets in folders: what is saved is loaded, and nothing else is."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import mth
from mth.foundations.errors import UserError


def some_rows(name, weight, count, mask_seed):
    mask = torch.zeros_like(weight, dtype=torch.bool)
    if name != "model.norm.weight":
        mask[mask_seed::7] = True
    return mask


MASKS = {
    "random": {"sparsity": 97, "mask_seed": 3},
    "magnitude": {"sparsity": 97, "mask": "magnitude", "magnitude": "smallest"},
    "a whole layer": {"mask": "last_layer", "budget": "whole_layer"},
    "every entry": {"sparsity": 0},
    "a function": {"sparsity": 90, "mask": some_rows, "mask_seed": 2},
    "entries": {"mask": {"model.norm.weight": None, "model.embed_tokens.weight": [7, 3]}},
}


def change(ticket):
    ticket.values.data.mul_(1.25)
    ticket._ticket.write()
    return ticket


def logits(model):
    with torch.no_grad():
        return model(torch.arange(40).view(2, 20)).logits


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_ticket_gives_the_same_weights_and_masters(small_model, tmp_path, mask, dtype):
    base = copy.deepcopy(small_model.to(dtype))
    ticket = change(mth.attach(small_model, **MASKS[mask]))
    ticket.save(tmp_path / "t")
    assert sorted(file.name for file in (tmp_path / "t").iterdir()) == ["README.md", "ticket.json", "ticket.safetensors"]
    again = mth.load_ticket(base, tmp_path / "t")
    assert torch.equal(again.values, ticket.values) and again.recipe == ticket.recipe
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in small_model.state_dict().items())
    indices = [key for key in load_file(tmp_path / "t" / "ticket.safetensors") if key != "values"]
    assert bool(indices) == (mask in ("a function", "entries"))


def test_a_ticket_is_saved_after_merge_too_and_replaces_an_older_one(small_model, tmp_path):
    base = copy.deepcopy(small_model)
    ticket = mth.attach(small_model, sparsity=97)
    ticket.save(tmp_path)
    change(ticket).merge()
    ticket.save(tmp_path)
    assert torch.equal(mth.load_ticket(base, tmp_path).values, ticket.values)


def refused(model, source, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message) as caught:
        mth.load_ticket(model, source)
    assert "\n" not in str(caught.value)
    assert getattr(model, "mth_ticket", None) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_base_model_is_refused_and_left_as_it_is(small_model, tmp_path):
    base = copy.deepcopy(small_model)
    change(mth.attach(small_model, sparsity=97)).save(tmp_path / "t")
    mth.attach(copy.deepcopy(base), mask=some_rows).save(tmp_path / "own")
    trained = small_model.mth_ticket.merge()
    refused(trained, tmp_path / "t", "belongs to another base model: base_sha256 is .*same dtype")
    refused(copy.deepcopy(base).bfloat16(), tmp_path / "t", "base_sha256 is")
    smaller = copy.deepcopy(base)
    smaller.model.layers = smaller.model.layers[:1]
    for folder in ("t", "own"):
        refused(smaller, tmp_path / folder, "belongs to another base model: total_parameters is")
    settings = json.loads((tmp_path / "t" / "ticket.json").read_text())
    settings["mask"]["mask_seed"] = 8
    (tmp_path / "t" / "ticket.json").write_text(json.dumps(settings))
    refused(base, tmp_path / "t", "belongs to another mask: mask_sha256 is")


def test_damaged_tickets_are_refused(small_model, tmp_path):
    ticket = mth.attach(small_model, sparsity=97)
    ticket.save(tmp_path)
    base, file, header = ticket.detach(), tmp_path / "ticket.safetensors", tmp_path / "ticket.json"
    whole, text = file.read_bytes(), header.read_text()
    file.write_bytes(whole[:-8])
    refused(base, tmp_path, "is not the file that ticket.json was written with")
    file.unlink()
    refused(base, tmp_path, "is damaged or incomplete")
    file.write_bytes(whole)
    for damaged, message in (("{", "format None"), (text.replace("folder-1", "folder-9"), "format mth-ticket-folder-9"), ("{}", "format")):
        header.write_text(damaged)
        refused(base, tmp_path, message)
    header.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "mask"}))
    refused(base, tmp_path, "is damaged or incomplete")
    header.unlink()
    refused(base, tmp_path, "no readable checkpoint")
    refused(base, tmp_path / "nothing" / "here", "does not exist")
    refused(base, "nobody", "does not exist")


def test_the_hub_that_gives_nothing_is_one_line(small_model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(small_model, "nobody/no-ticket", "nobody/no-ticket is no folder here, and the hub does not give it")


def test_a_hub_that_refuses_an_upload_is_one_line(small_model, monkeypatch):
    import httpx
    import huggingface_hub

    def nothing(self, *args, **options):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", nothing)
    with pytest.raises(UserError, match="me/t: the hub does not take the upload"):
        mth.attach(small_model, sparsity=97).push_to_hub("me/t")


def test_a_folder_with_another_readme_and_a_place_that_is_no_folder_are_refused(small_model, tmp_path):
    (tmp_path / "README.md").write_text("# Mine")
    (tmp_path / "file").write_text("")
    ticket = mth.attach(small_model, sparsity=97)
    with pytest.raises(UserError, match=r"README\.md is not a ticket's model card"):
        ticket.save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine" and not (tmp_path / "ticket.json").exists()
    with pytest.raises(UserError, match="could not be written"):
        ticket.save(tmp_path / "file" / "t")
    with pytest.raises(UserError, match="format=lora is unknown"):
        ticket.save(tmp_path / "t", "lora")


def test_the_card_names_no_place_of_this_machine(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "base")
    model = type(small_model).from_pretrained(tmp_path / "base")
    mth.attach(model, sparsity=97, mask="matrices").save(tmp_path / "t")
    model.mth_ticket.save(tmp_path / "p", "peft")
    for file in [*(tmp_path / "t").iterdir(), *(tmp_path / "p").iterdir()]:
        assert str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("sparsity", [99.5, 90, 70])
def test_peft_loads_an_adapter_with_the_same_logits(small_model, tmp_path, sparsity):
    base = copy.deepcopy(small_model)
    ticket = change(mth.attach(small_model, sparsity=sparsity, mask="matrices", mask_seed=1))
    ticket.save(tmp_path, "peft")
    expected, plain = logits(small_model), logits(base)
    adapted = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-5, atol=1e-6)
    assert (expected - plain).abs().max() > 1e-3
    for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        if name.endswith("shira_indices"):  # nothing outside of the mask, if the adapter is trained further
            weight = f"{name.removeprefix('base_model.model.').removesuffix('.shira_indices')}.weight"
            flat = tensor[0].long() * ticket._ticket.shapes[weight][1] + tensor[1].long()
            assert torch.equal(flat.unique(), ticket._ticket.indices[weight].long())
    merged = adapted.merge_and_unload()
    for name, tensor in small_model.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 97}, "model.embed_tokens.weight has active entries, but is not the weight of one linear layer"),
        ({"mask": {"model.layers.0.self_attn.q_proj.bias": [1]}}, "q_proj.bias has active entries"),
        ({"mask": {"model.layers.0.mlp.up_proj.weight": None}}, "SHiRA cannot hold this many entries"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(small_model, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        mth.attach(small_model, **arguments).save(tmp_path / "p", "peft")
    assert not (tmp_path / "p" / "adapter_config.json").exists()
