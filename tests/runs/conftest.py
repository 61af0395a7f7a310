"""Fixtures of the runs' tests: an MLflow store."""

import pytest

from mth.runs.trackers.mlflow_store import default_uri, prepare_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """The bytes of an sqlite store without experiments of ours: making one takes MLflow seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare_store(f"sqlite:///{path}", "Default")
    return path.read_bytes()


@pytest.fixture
def store(tmp_path, empty_store):
    """URI of the default store of tmp_path."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    return default_uri(tmp_path)
