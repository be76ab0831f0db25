"""Every page, on wide and narrow screens, light and dark: axe finds no faults, and nothing is wider than the screen."""

import pytest
from support.old_runs import unpack
from support.web_server import serving

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

PAGES = [
    "/",
    "/runs/tiny-sft",
    "/runs/life",
    "/runs/tiny#tab-samples",
    "/compare?run=tiny-dpo&run=tiny-sft",
    "/new",
    "/new?stage=sft",
    "/new?stage=pretrain",
    "/experiments",
    "/experiments/learning_rate",
    "/experiments/sweep",
    "/experiments/duel",
    "/look",
    "/chat",
    "/models",
    "/test?model=tiny-sft",
    "/nothing",
]
SCREENS = [(1280, 800, "light"), (390, 844, "dark")]


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory):
    home = tmp_path_factory.mktemp("lived-in")
    unpack(home)
    with serving(home) as running:
        yield running


@pytest.fixture(params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[2]}")
def screen(request, chromium):
    width, height, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    yield context.new_page()
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_and_fits_the_screen(lived_in, screen, path):
    screen.goto(lived_in.link)
    response = screen.goto(lived_in.address + path)
    assert response.status == (404 if path == "/nothing" else 200)
    screen.wait_for_load_state("networkidle")
    found = axe.Axe().run(screen).response["violations"]
    serious = [
        f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)
    wide = screen.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{wide} pixels wider than the screen"
