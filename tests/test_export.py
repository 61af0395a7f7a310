"""`python -m mth.export`: a run's ticket in each format, with a card that says what the run did, and on the hub."""

import copy
import json
import sys

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import mth
from mth import export as command
from mth.export import export
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models.load import load_policy
from mth.runs.checkpoint import checkpoint_path, save_checkpoint
from mth.runs.folder import RunFolder
from mth.runs.summary import Summary
from mth.tickets.draw import draw_ticket
from tests.conftest import make_config


@pytest.fixture(scope="module", params=["matrices", "magnitude"])
def run(request, tmp_path_factory):
    """The folder of a finished run, and the state of its trained model."""
    folder, config = tmp_path_factory.mktemp("run"), make_config(mask={"family": request.param}, model={"device": "cpu"})
    policy = load_policy(config.model)
    ticket = draw_ticket(policy.model, config)
    ticket.values.data.mul_(1.1)
    ticket.write()
    save_checkpoint(checkpoint_path(folder, 3), ticket, config, 3, torch.optim.SGD([ticket.values]), {})
    base, final = ({"arithmetic": {"reward": mean, "reward_error": 0.01}} for mean in (0.25, 0.5))
    RunFolder(folder).write_summary(Summary(status="finished", steps=3, base=base, final=final))
    return request.param, folder, policy.model


def base():
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL)


def assert_same(model, other):
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_of_a_run_loads_with_the_library(run):
    family, folder, trained = run
    for source in (folder, str(checkpoint_path(folder, 3))):
        model = base()
        ticket = mth.load_ticket(model, source)
        assert_same(model, trained)
        assert ticket.recipe["family"] == family
        ticket.detach()
        assert_same(model, base())
    with pytest.raises(UserError, match="belongs to another base model: base_sha256"):
        mth.load_ticket(copy.deepcopy(trained), folder)


def test_every_format_gives_the_trained_model(run, tmp_path, monkeypatch, capsys):
    family, folder, trained = run
    for kind in ("merged", "ticket"):
        monkeypatch.setattr(sys, "argv", ["mth.export", str(folder), str(tmp_path / kind), "--format", kind])
        command.main()
        assert f"{tmp_path / kind}: load it" in capsys.readouterr().out
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), trained)
    model = base()
    mth.load_ticket(model, tmp_path / "ticket")
    assert_same(model, trained)
    for kind in ("merged", "ticket"):
        card = (tmp_path / kind / "README.md").read_text()
        for line in (f"| family | {family} |", "| task | arithmetic |", "| steps | 3 of 3 |", "| learning rate | 0.005 |"):
            assert line in card
        assert "| arithmetic, reward | 0.250 ± 0.010 before, 0.500 ± 0.010 after |" in card and str(folder) not in card


def test_an_adapter_of_a_run_has_the_trained_logits(run, tmp_path):
    family, folder, trained = run
    if family != "matrices":
        with pytest.raises(UserError, match="SHiRA adapts nothing else"):
            export(folder, tmp_path / "out", "peft")
        return
    export(folder, tmp_path / "out", "peft")
    adapted, ids = PeftModel.from_pretrained(base(), tmp_path / "out"), torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, trained(ids).logits, rtol=1e-5, atol=1e-5)
        assert (trained(ids).logits - base()(ids).logits).abs().max() > 0.01
    assert "PeftModel.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_goes_to_the_hub(run, tmp_path, monkeypatch):
    _, folder, _ = run
    calls = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *args, **options: calls.append((args, options)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **options: calls.append(options) or "https://hub/me/t")
    assert export(folder, tmp_path / "out", "ticket", "me/t", True) == "https://hub/me/t"
    assert calls[0] == (("me/t",), {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/t", tmp_path / "out")
    assert 'mth.load_ticket(model, "me/t")' in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "ticket.json").read_text())["results"]


def test_results_of_another_step_are_not_in_the_card(run, tmp_path):
    _, folder, _ = run
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "other" / "checkpoints" / "step_000003.safetensors"
    path.write_bytes(checkpoint_path(folder, 3).read_bytes())
    results = {"arithmetic": {"reward": 0.1, "reward_error": 0.1}}
    RunFolder(tmp_path / "other").write_summary(Summary(status="finished", steps=8, base=results, final=results))
    export(path, tmp_path / "out", "ticket")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Training" in card and "## Results" not in card
