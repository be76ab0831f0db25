"""A real server and a real Chromium; tests that need the browser are skipped, with a reason, if it is missing."""

import pytest

from .old_runs import unpack
from .web_server import CHROMIUM_ARGUMENTS, find_chromium, serving

PATIENCE_MS = 30_000  # for something that takes a second on an idle machine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the tests of a file, with an empty checkpoints folder in server.home."""
    home = tmp_path_factory.mktemp("web")
    (home / "checkpoints").mkdir()
    with serving(home) as running:
        yield running


@pytest.fixture(scope="session")
def lived_in(tmp_path_factory):
    """One server for the tests of several files, with a few small runs to start from."""
    home = tmp_path_factory.mktemp("lived-in")
    unpack(home)
    with serving(home) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    """One browser for the tests of a file: while Playwright is open, no other event loop can run in this thread."""
    path = find_chromium()
    if path is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """An empty tab. The test fails if its page throws an error, or requests anything outside 127.0.0.1."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    faults = []
    tab.on("pageerror", lambda error: faults.append(f"error in the page: {error}"))
    tab.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    tab.on(
        "request",
        lambda asked: (
            None if asked.url.startswith(("http://127.0.0.1:", "blob:", "data:")) else faults.append(asked.url)
        ),
    )
    yield tab
    context.close()
    assert not faults, faults
