"""MLflow's own pages on a finished grid, in a real browser: runs listed, curves drawn, grouped by sparsity."""

import os
import re
import socket
import subprocess
import sys

import pytest

from mth.runs.mlflow import default_uri, mlflow_client
from tests.servers import wait_for_health
from tests.ui.pictures import picture

SMALL = [
    "task=arithmetic",
    "task.train_rows=32",
    "train.steps=6",
    "train.batch_size=8",
    "rollout.group_size=4",
    "rollout.max_tokens=16",
    "eval.samples=8",
    "eval.every=2",
]


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    """Address of MLflow's UI on a grid of two sparsities and two masks, and the id of its experiment."""
    folder = tmp_path_factory.mktemp("user")
    grid = ["-m", "sparsity=99,99.9", "mask_seed=0,10", *SMALL, "hydra.launcher.jobs=2"]
    subprocess.run([sys.executable, "-m", "mth.train", *grid], cwd=folder, check=True, capture_output=True, timeout=300)
    uri = default_uri(folder / "multirun")
    (experiment,) = (e for e in mlflow_client(uri).search_experiments() if e.name == "mth")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        uri,
        "--workers",
        "1",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for_health(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def test_runs_are_listed_with_names_that_tell_them_apart(page, ui):
    page.goto(f"{ui}/runs?workflowType=machine_learning")
    page.get_by_text("tiny-arithmetic-s99.9-m10-lr0.03").first.wait_for(timeout=60_000)
    picture(page, "runs")
    for name in ("s99-m0-lr0.005", "s99-m10-lr0.005", "s99.9-m0-lr0.03", "s99.9-m10-lr0.03"):
        assert page.get_by_text(f"tiny-arithmetic-{name}").first.is_visible()


def test_curves_are_drawn_and_grouped_by_sparsity(page, ui):
    page.goto(f"{ui}/runs?workflowType=machine_learning&compareRunsMode=CHART")
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(timeout=60_000)
    page.wait_for_timeout(2000)
    picture(page, "curves")
    assert page.locator(".js-plotly-plot").count() >= 2
    page.get_by_role("button", name=re.compile("Group by")).first.click()
    page.get_by_placeholder("Search").last.fill("sparsity")
    page.get_by_role("menuitemcheckbox", name="sparsity", exact=True).click()
    page.keyboard.press("Escape")
    for group in ("99.0", "99.9"):
        page.get_by_text(f"Group: {group}").first.wait_for(timeout=60_000)
        assert page.get_by_text(f"{group} (eval/arithmetic/pass_at_1)").count() >= 1
    page.wait_for_timeout(2000)
    picture(page, "grouped")
