"""The pages of runs in a real browser: the list, live curves, samples, comparing, and text that stays text."""

import json
import os
import time

import pytest
from support.web_runs import append, lines, row, write_run

from llm_lab.runs.lock import hold

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed").expect


@pytest.fixture
def opened(page, server):
    page.goto(server.link)

    def go(path):
        page.goto(server.address + path)
        return page

    return go


@pytest.fixture
def alive(server):
    """Make a run that this process works in, so that the page shows it as running."""
    held = []

    def make(name, **facts):
        folder = write_run(server.home, name, status="running", **facts)
        lock = hold(folder)
        lock.__enter__()
        held.append(lock)
        return folder

    yield make
    for lock in held:
        lock.__exit__(None, None, None)


def value_of(page, measure):
    return page.locator(f'section[data-measure="{measure}"] .chart-key b').first


def test_a_new_user_sees_what_to_do_and_the_first_run_appears_by_itself(opened, server):
    page = opened("/")
    expect(page.get_by_text("llm-lab run demo")).to_be_visible()
    expect(page.get_by_role("link", name="Start your first run")).to_have_attribute("href", "/new")
    for name, address in (("Try it on a sample", "/new?recipe=stories"), ("See the demo", "/new?recipe=demo")):
        expect(page.get_by_role("link", name=name)).to_have_attribute("href", address)
        assert server.ask("GET", address)[0] == 200
    write_run(server.home, "first", results={"eval_loss": 1.25})
    expect(page.get_by_role("link", name="first", exact=True)).to_be_visible()
    expect(page.get_by_text("validation loss 1.2500")).to_be_visible()
    expect(page.get_by_text("llm-lab run demo")).to_be_hidden()


def test_chosen_runs_stay_chosen_when_another_one_appears_and_lead_to_their_comparison(opened, server):
    for number, name in enumerate(["oak", "elm"]):
        write_run(server.home, name, created_at=1_790_000_000 + number)
    page = opened("/")
    page.get_by_label("Choose oak").check()
    write_run(server.home, "zebra", created_at=1_799_000_000)
    expect(page.get_by_role("link", name="zebra", exact=True)).to_be_visible()
    expect(page.get_by_label("Choose oak")).to_be_checked()
    expect(page.get_by_label("Choose elm")).not_to_be_checked()
    expect(page.get_by_label("Choose zebra")).not_to_be_checked()
    page.get_by_label("Choose elm").press("Space")
    page.get_by_role("searchbox").fill("el")
    expect(page.locator("#rows tr")).to_have_count(1)
    page.get_by_role("link", name="Compare", exact=True).click()
    expect(page).to_have_url(f"{server.address}/compare?run=oak&run=elm")


def test_a_pipeline_is_folded_and_opens_by_keyboard(opened, server):
    write_run(server.home, "life", stages=["sft", "dpo"])
    write_run(server.home, "life/sft", stage="sft")
    page = opened("/")
    expect(page.locator('[data-run="life"]')).to_be_visible()
    expect(page.locator('[data-run="life/sft"]')).to_have_count(0)
    page.get_by_role("button", name="1 runs in life").press("Enter")
    page.get_by_role("link", name="sft", exact=True).press("Enter")
    expect(page).to_have_url(f"{server.address}/runs/life/sft")
    page.get_by_role("link", name="life", exact=True).click()
    expect(page.locator(".stage")).to_have_count(2)
    expect(page.locator(".stage").nth(1)).to_contain_text("waiting")


def test_curves_grow_while_the_run_works_and_a_zoom_stays(opened, alive):
    folder = alive("growing", rows=[row(step, 3.0) for step in range(1, 51)], max_steps=100)
    page = opened("/runs/growing")
    expect(value_of(page, "loss")).to_have_text("3.0000")
    expect(page.locator("#progress")).to_contain_text("step 50 of 100")
    zoomed = page.get_by_role("button", name="Reset zoom")
    expect(zoomed).to_be_disabled()
    page.get_by_role("button", name="Zoom in").press("Enter")
    page.get_by_role("button", name="Zoom in").press("Enter")
    expect(zoomed).to_be_enabled()
    started = time.monotonic()
    append(folder, row(51, 2.125), row(51, eval_loss=2.5))
    expect(value_of(page, "loss")).to_have_text("2.1250")
    assert time.monotonic() - started < 8  # about a second on an idle machine
    expect(page.locator('section[data-measure="loss"] .chart-key b').nth(1)).to_have_text("2.5000")
    expect(page.locator("#progress")).to_contain_text("step 51 of 100")
    expect(zoomed).to_be_enabled()
    assert 19 < ends_of_axis(page)[0] < ends_of_axis(page)[1] < 40
    zoomed.click()
    expect(zoomed).to_be_disabled()
    assert ends_of_axis(page) == [1, 51]


def ends_of_axis(page):
    """Return the first and last step of the loss chart, as shown by the keys for its ends."""
    area = page.locator('section[data-measure="loss"] .u-over').bounding_box()
    at = page.locator('section[data-measure="loss"] .chart-at')
    found = []
    for x in (area["x"] + 1, area["x"] + area["width"] - 1):
        page.mouse.move(x, area["y"] + 40)
        expect(at).to_contain_text("step")
        found.append(int(at.text_content().removeprefix("step").strip().replace(",", "")))
    return found


@pytest.mark.slow
def test_dragging_over_a_chart_zooms_and_a_double_click_shows_the_whole_again(opened, server):
    write_run(server.home, "dragged", rows=[row(step, 3.0 - step / 100) for step in range(1, 101)])
    page = opened("/runs/dragged")
    expect(value_of(page, "loss")).to_have_text("2.0000")
    area = page.locator('section[data-measure="loss"] .u-over').bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, middle, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="Reset zoom")).to_be_enabled()
    first, last = ends_of_axis(page)
    assert 48 <= first <= 53
    assert 73 <= last <= 78
    page.mouse.dblclick(area["x"] + area["width"] / 2, middle)
    expect(page.get_by_role("button", name="Reset zoom")).to_be_disabled()


def test_a_resumed_run_that_replaces_its_metrics_is_drawn_from_its_new_start(opened, alive):
    folder = alive("resumed", rows=[row(step, 1.5) for step in range(1, 31)])
    page = opened("/runs/resumed")
    expect(value_of(page, "loss")).to_have_text("1.5000")
    (folder / "new").write_text(lines([row(step, 2.25) for step in range(1, 11)]))
    os.replace(folder / "new", folder / "metrics.jsonl")
    expect(value_of(page, "loss")).to_have_text("2.2500")
    assert ends_of_axis(page) == [1, 10]


def test_an_outlier_of_a_long_run_is_drawn_and_in_the_table_of_points(opened, server):
    rows = [row(step, 2.0) for step in range(1, 20_001)]
    rows[7_776]["loss"] = 55.5
    write_run(server.home, "long", rows=rows)
    asked = []
    page = opened("/")
    page.on("request", lambda request: asked.append((request.url, request.post_data or "")))
    opened("/runs/long?smooth=0.9")
    page.locator('section[data-measure="loss"] summary').press("Enter")
    expect(page.get_by_role("row", name="7,777 55.5000")).to_be_visible()
    expect(page.get_by_role("row", name="20,000 2.0000")).to_be_visible()
    # The browser requests the curves once, before the scripts that draw them have loaded.
    order = [url.removeprefix(server.address) for url, _ in asked]
    first = "/api/runs/long/curves/first?axis=step"
    assert order.count(first) == 1
    assert order.index(first) < order.index("/static/curves.js")
    assert not any('"metrics:step:2000:long":null' in body for _, body in asked)


@pytest.mark.slow
def test_the_axis_the_smoothing_and_the_scale_are_in_the_address(opened, server):
    write_run(server.home, "linked", rows=[row(step, 3.0 / step) for step in range(1, 41)])
    page = opened("/runs/linked")
    page.get_by_role("button", name="Tokens").click()
    page.get_by_label("Log axis").check()
    page.get_by_label("Smoothing").fill("0.5")
    expect(page).to_have_url(f"{server.address}/runs/linked?axis=train_tokens&log=1&smooth=0.5")
    page.reload()
    expect(page.get_by_role("button", name="Tokens")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Log axis")).to_be_checked()
    expect(page.get_by_label("Smoothing")).to_have_value("0.5")
    page.get_by_label("Smoothing").press("ArrowRight")
    expect(page).to_have_url(f"{server.address}/runs/linked?axis=train_tokens&log=1&smooth=0.51")


def test_samples_arrive_while_the_run_works_and_tabs_have_addresses(opened, alive):
    folder = alive("writing", rows=[row(1, 3.0)])
    page = opened("/runs/writing#samples")
    expect(page.get_by_text("No samples yet")).to_be_visible()
    (folder / "samples.md").write_text("## Step 20\n\nPrompt: `Once`\n\n> Once upon\n> a time\n\n")
    expect(page.get_by_text("Step 20")).to_be_visible()
    expect(page.locator("blockquote")).to_have_text("Once upon\na time")
    page.get_by_role("tab", name="Samples").press("ArrowRight")
    expect(page).to_have_url(f"{page.url.split('#')[0]}#scores")


def test_the_recipe_shows_its_derived_values_with_the_reason_and_the_command(opened, server):
    write_run(server.home, "explained")
    page = opened("/runs/explained#recipe")
    expect(page.get_by_role("row", name="optimizer.learning_rate 0.01 fits the width")).to_be_visible()
    expect(page.get_by_text("llm-lab run checkpoints/explained/recipe.yaml", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Run again with changes")).to_have_attribute("href", "/new?from=explained")


def test_a_run_that_died_says_so_and_offers_to_resume(opened, server):
    gone = {"pid": 2**22 + 1, "host": os.uname().nodename, "started": 1.0}
    write_run(server.home, "dead", status="running", process=gone, rows=[row(7, 2.0)])
    page = opened("/runs/dead")
    expect(page.locator("#about .status")).to_have_text("interrupted")
    expect(page.get_by_text("Its process no longer exists")).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_two_runs_are_drawn_together_with_what_differs_between_them(opened, server):
    same = {"data": [{"path": "a.txt", "fingerprint": "1" * 64}]}
    write_run(
        server.home, "low", rows=[row(1, 3.0), row(9, 2.0)], results={"eval_loss": 2.5}, learning_rate=0.01, **same
    )
    write_run(
        server.home, "high", rows=[row(1, 3.0), row(9, 1.0)], results={"eval_loss": 1.5}, learning_rate=0.02, **same
    )
    other = {"data": [{"path": "b.txt", "fingerprint": "2" * 64}]}
    write_run(server.home, "else", rows=[row(1, 4.0)], results={"eval_loss": 0.5}, **other)
    page = opened("/compare?run=low&run=high")
    chart = page.locator('section[data-measure="loss"]')
    expect(chart.locator(".chart-key")).to_have_text(["low2.0000", "high1.0000"])
    expect(page.get_by_role("row", name="optimizer.learning_rate 0.01 derived 0.02 derived")).to_be_visible()
    expect(page.get_by_role("cell", name="1.5000 best")).to_be_visible()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".head h1")).not_to_be_in_viewport()
    expect(page.locator("#chosen")).to_be_in_viewport()  # the names of the colors stay in view
    page.get_by_role("button", name="low", exact=True).press("Enter")
    expect(chart.locator(".chart-key")).to_have_text(["high1.0000"])
    page.get_by_label("Add a run").fill("else")
    page.get_by_label("Add a run").press("Enter")
    expect(page).to_have_url(f"{server.address}/compare?run=low&run=high&run=else")
    # Measured on other data: no value is the best.
    expect(page.locator("td.best")).to_have_count(0)
    page.get_by_role("button", name="Remove high").click()
    expect(page).to_have_url(f"{server.address}/compare?run=low&run=else")
    expect(chart.locator(".chart-key")).to_have_text(["else4.0000"])


HOSTILE = (
    '<img src=x onerror="document.title=1"><script>document.title=1</script>![x](http://evil.example/x.png)\x1b[31m'
)


def test_text_from_files_stays_text(opened, server):
    """The fixture `page` fails on an error, a violation of the policy, and a request elsewhere."""
    name = "<img src=x onerror=alert(1)>"
    folder = write_run(
        server.home,
        name,
        status="failed",
        error=HOSTILE,
        warnings=[HOSTILE],
        model=HOSTILE,
        results={HOSTILE: 1.0},
        rows=[row(1, 3.0, **{HOSTILE: 2.0})],
    )
    (folder / "samples.md").write_text(f"## Step 1\n\nPrompt: `{HOSTILE}`\n\n> {HOSTILE}\n\n")
    (folder / "report.md").write_text(
        f"# {HOSTILE}\n\n| a | b |\n| --- | --- |\n| {HOSTILE} | [x](javascript:alert(1)) |\n"
    )
    (folder / "recipe.yaml").write_text(f"a: 1  # derived: {HOSTILE}\n")
    page = opened("/")
    title = page.title()
    expect(page.get_by_role("link", name=name)).to_be_visible()
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.get_by_text("document.title=1").first).to_be_visible()
    for tab in ("Samples", "Scores", "Plan", "Recipe", "Warnings", "Lineage", "Report"):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator("[role=tabpanel]:not([hidden])")).not_to_be_empty()
    expect(page.locator("article.report")).to_contain_text("onerror")
    assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
    assert "\x1b" not in page.locator("main").inner_text()
    opened(f"/compare?run={name}")
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    assert title.startswith("Runs")


def test_a_run_with_invalid_values_is_an_error_that_names_its_file(server):
    write_run(server.home, "huge", results={"eval_loss": 10**400})
    write_run(server.home, "plain", results={"eval_loss": 1.0})
    for path in ("/runs/huge", "/compare?run=huge&run=plain"):
        status, _, text = server.ask("GET", path)
        assert status == 400
        assert "huge/run.json" in text
    assert server.ask("GET", "/")[0] == 200


def test_pictures_of_reports_are_served_without_any_rights_and_nothing_else_is(server):
    folder = write_run(server.home, "drawn")
    (folder / "curves.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>')
    status, headers, _ = server.ask("GET", "/runs-files/drawn/curves.svg")
    assert (status, headers["content-type"]) == (200, "image/svg+xml")
    assert "sandbox" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    (server.home / "curves.svg").write_text("<svg/>")
    (folder / "predicted.svg").symlink_to(server.home / "curves.svg")
    for path in ("drawn/run.json", "drawn/predicted.svg", "drawn/../../curves.svg", "curves.svg"):
        assert server.ask("GET", f"/runs-files/{path}")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/nothing", "/compare?run=nothing", "/api/runs/nothing/lineage", "/api/runs/nothing/report"),
        *("/api/runs/nothing/log", "/api/runs/nothing/curves?from=1&to=2"),
    ],
)
def test_missing_pages_are_404(server, path):
    status, _, text = server.ask("GET", path)
    assert status == 404
    assert "nothing" in text


def test_stopping_an_idle_run_and_resuming_a_run_of_a_sweep_are_errors_that_say_why(server):
    write_run(server.home, "ended")
    write_run(server.home, "grid/cell", status="stopped")
    (server.home / "checkpoints" / "grid" / "sweep.json").write_text("{}")
    for path, why in (
        ("ended/stop", "this run is not running; its status is done"),
        ("grid/cell/resume", "belongs to a study or a sweep"),
    ):
        status, _, text = server.ask("POST", f"/api/runs/{path}", {})
        assert status == 400
        assert why in json.loads(text)["problems"][0]["text"]


def test_a_request_for_live_values_of_a_deleted_run_is_an_error_of_that_topic_alone(server):
    write_run(server.home, "there", rows=[row(1, 3.0)])
    asked = {"topics": {"run:gone": None, "metrics:step:100:there": None, "metrics:mass:9:there": None, "runs": None}}
    updates = server.api("/api/updates", asked)["updates"]
    assert updates["run:gone"]["problems"]
    assert updates["metrics:mass:9:there"]["problems"]
    assert updates["metrics:step:100:there"]["data"]["points"]["loss"] == {"x": [1.0], "y": [3.0]}
    cursor = updates["metrics:step:100:there"]["cursor"]
    again = server.api("/api/updates", {"topics": {"metrics:step:100:there": cursor}})
    assert again["updates"] == {}


def test_a_duration_never_shows_60_minutes_or_seconds(opened):
    script = "async (times) => { const { duration } = await import('/static/lab.js'); return times.map(duration); }"
    written = opened("/").evaluate(script, [0.4, 59.7, 119.8, 3599.9, 50_399.0, 200_000.0])
    assert written == ["0 s", "1 min 0 s", "2 min 0 s", "1 h 0 min", "13 h 59 min", "2 days"]


def test_the_page_writes_numbers_as_the_glossary_does(opened):
    from llm_lab.runs.glossary import QUANTITIES

    # Without halves, which Python rounds to even and a browser rounds up.
    values = [0.0, 1e-7, 0.00042, 0.0123, 0.53, 0.99951, 1.0, 9.949, 12.3456, 999.4, 1234.6, 9999.4, 10_400.0, 65_536.0]
    values += [999_600.0, 3.2e6, 7.77e9, 2.5e12, -0.25, -3.75, 172_900.0]
    forms = sorted({one.form for one in QUANTITIES.values()})
    by_form = {one.form: one for one in QUANTITIES.values()}
    expected = [[form, value, by_form[form].write(value)] for form in forms for value in values]
    signed = {"decimal", "{:+.4f}", "{:.4f}", "{:.3f}", "{:.2f}", "{:.3g}"}  # the others are never negative
    expected = [one for one in expected if one[1] >= 0 or one[0] in signed]
    script = "async (cases) => { const { write } = await import('/static/numbers.js'); "
    script += "return cases.map(([form, value]) => write(form, value)); }"
    written = opened("/").evaluate(script, [one[:2] for one in expected])
    wrong = [(*one, text) for one, text in zip(expected, written, strict=True) if one[2] != text]
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
def test_a_command_is_listed_before_its_run_exists_and_says_why_it_ended_without_one(opened, server):
    recipe = {"stage": "pretrain", "name": "hopeless", "device": "cpu", "data": [{"path": "no/such-data"}]}
    recipe |= {"model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, "tokenizer": "bytes"}
    (server.home / "configs").mkdir(exist_ok=True)
    (server.home / "configs" / "hopeless.yaml").write_text(json.dumps(recipe))
    launch = server.api("/api/new/start-recipe", {"recipe": "hopeless"})["launch"]
    page = opened("/")
    line = page.locator("tr", has_text="hopeless")
    expect(line.locator(".status")).to_have_text("starting")
    expect(line.locator(".status")).to_have_text("failed", timeout=90_000)
    expect(line).to_contain_text("data.0.path = no/such-data: ")
    assert server.api(f"/api/launches/{launch}")["error"].startswith("data.0.path = no/such-data: ")
    assert not (server.home / "checkpoints" / "hopeless").exists()
    line.get_by_role("button", name="Dismiss hopeless").click()
    expect(line).to_be_hidden()


def test_the_stop_button_does_not_move_when_the_page_gets_more_links(opened, alive):
    facts = {"stage": "sft", "first_evaluation_at": 1.0, "recipe": {"train": {"max_steps": 10}}}
    folder = alive("tuning", **facts)
    page = opened("/runs/tuning")
    expect(page.get_by_text("step 0 of 10")).to_be_visible()
    expect(page.get_by_text("First evaluation")).to_be_visible()
    expect(page.get_by_role("button", name="Chat")).to_be_disabled()
    stop = page.get_by_role("button", name="Stop", exact=True)
    before = stop.bounding_box()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    append(folder, row(1, 2.0), row(2, 1.5))
    link = page.get_by_role("link", name="Fine-tune this model")
    expect(link).to_have_attribute("href", "/new?stage=sft&model=checkpoints/tuning")
    expect(page.get_by_text("step 2 of 10")).to_be_visible()
    assert stop.bounding_box() == before
