"""A real browser for tests."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def chromium():
    """Path of Debian's Chromium, installed where CI or a developer who asks for it has root."""
    wanted = os.environ.get("CI") or os.environ.get("MTH_CHROMIUM")
    if not shutil.which("chromium") and wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], check=True, env=environment)
    if not shutil.which("chromium"):
        pytest.skip("needs Chromium; MTH_CHROMIUM=1 installs it on Debian, as root")
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def page(chromium):
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        yield browser.new_page(viewport={"width": 1500, "height": 950})
        browser.close()
