"""The form of a run in a real browser: live derived values, problems at their fields, uploads, the start."""

import json

import pytest

HOSTILE = "<img src=x onerror=alert(1)> ![](https://evil.example/a.png) <script>document.title='owned'</script>"
ROWS = [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}."} for i in range(40)]
FILE = "\n".join(json.dumps(row) for row in [{"question": HOSTILE, "answer": "Text."}, *ROWS]).encode()


@pytest.fixture
def server(lived_in):
    """A server with a few small runs to start from."""
    return lived_in


@pytest.fixture
def form(page, server):
    """Open the form of a stage; return the tab and `expect`."""
    from playwright.sync_api import expect

    page.goto(server.link)

    def open_form(query):
        page.goto(f"{server.address}/new?{query}")
        return page, expect

    return open_form


def test_derived_values_follow_while_the_user_types_and_a_wrong_one_is_shown_at_its_field(form):
    page, expect = form("stage=pretrain")
    page.get_by_role("tab", name="Training").click()
    rate = page.get_by_role("textbox", name="Learning rate?", exact=True)
    expect(rate).to_have_attribute("placeholder", "0.02")
    page.get_by_role("radio", name="adamw the standard").check()
    expect(rate).to_have_attribute("placeholder", "0.001")
    rate.fill("fast")
    expect(rate).to_have_attribute("aria-invalid", "true")
    error = page.locator(f"#{rate.get_attribute('aria-describedby').split()[-1]}")
    expect(error).to_contain_text("Learning rate = fast")
    # The summary links to the field, also from another tab.
    page.get_by_role("tab", name="Model").click()
    page.get_by_role("alert").get_by_text("Learning rate = fast").click()
    expect(rate).to_be_focused()
    rate.fill("0.002")
    expect(page.get_by_label("Plan, recipe and command")).to_contain_text("learning_rate: 0.002")
    expect(error).to_be_hidden()
    # Nothing is lost when the page is loaded again.
    page.reload()
    expect(page.locator("#restored")).to_contain_text("earlier answers were kept")
    page.get_by_role("tab", name="Training").click()
    expect(rate).to_have_value("0.002")
    page.locator("#again").click()
    expect(rate).to_have_value("")


def test_impossible_choices_say_why_and_every_key_is_found_by_searching(form):
    page, expect = form("stage=sft&model=checkpoints/tiny-sft")
    page.get_by_role("tab", name="Training").click()
    sophia = page.get_by_role("radio", name="sophia")
    expect(sophia).to_be_disabled()
    expect(page.locator("label.row", has=sophia)).to_contain_text("Not possible: for pretraining only")
    page.get_by_label("Search the settings").fill("max_grad_norm")
    expect(page.get_by_label("Maximum gradient norm?")).to_be_visible()
    rate = page.get_by_role("textbox", name="Learning rate?", exact=True)
    expect(rate).to_be_hidden()
    expect(page.get_by_label("Name of the run?")).to_be_visible()
    # Going to a field ends the search.
    page.get_by_role("link", name="a dataset").click()
    expect(page.get_by_label("Search the settings")).to_have_value("")
    expect(page.get_by_role("tabpanel")).to_have_count(1)
    expect(rate).to_be_hidden()


def test_a_problem_that_prevents_the_start_is_shown_at_its_field_before_the_start(form):
    page, expect = form("stage=sft")
    page.get_by_role("button", name="A folder or a Hub name").click()
    model = page.locator(".model-choice input[type=text]")
    expect(model).to_have_attribute("aria-invalid", "false")  # nothing was typed yet
    start = page.get_by_role("button", name="Start", exact=True)
    start.click()
    expect(page.get_by_text("Not started: a model is still needed (and 1 more).")).to_be_visible()
    model.fill("asdf-model")
    expect(model).to_have_attribute("aria-invalid", "true", timeout=60_000)  # no dataset is chosen yet
    page.get_by_role("tab", name="Data").click()
    page.get_by_role("button", name="builtin:instruct").click()
    expect(page.get_by_label("Dataset 1", exact=True)).to_be_focused()
    page.get_by_role("tab", name="Model").click()
    expect(model).to_have_attribute("aria-invalid", "true", timeout=60_000)
    error = page.locator(f"#{model.get_attribute('aria-describedby').split()[-1]}")
    expect(error).to_contain_text("asdf-model: no such local folder")
    # Start asks again, and the answer is the same.
    start.click()
    expect(page.locator("#faults")).to_be_focused(timeout=60_000)
    expect(error).to_contain_text("asdf-model: no such local folder")


def test_an_uploaded_file_is_recognized_and_its_rows_are_shown_as_text(form, server):
    page, expect = form("stage=sft&model=checkpoints/tiny-sft#tab-data")
    page.locator("#file").set_input_files({"name": "../<b>my data.jsonl", "mimeType": "text/plain", "buffer": FILE})
    dataset = page.get_by_label("Dataset 1", exact=True)
    expect(dataset).to_contain_text("41 of 41 rows", timeout=120_000)
    expect(dataset.get_by_role("cell").first).to_have_text(HOSTILE)
    assert page.locator("main img, main script[src='x']").count() == 0
    assert "owned" not in page.title()
    assert [file.name for file in (server.home / "uploads").iterdir()] == ["b-my-data.jsonl"]
    expect(page.get_by_label("Plan, recipe and command")).to_contain_text("path: uploads/b-my-data.jsonl")
    # It is offered here once it is removed, and in the form of the next run.
    dataset.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("button", name="uploads/b-my-data.jsonl")).to_be_visible()
    page.goto(f"{server.address}/new?stage=dpo#tab-data")
    page.get_by_role("button", name="uploads/b-my-data.jsonl").click()
    expect(page.get_by_label("Dataset 1", exact=True)).to_contain_text("uploads/b-my-data.jsonl")


def test_a_narrow_screen_shows_the_name_of_the_run_and_cuts_nothing_off(form):
    page, expect = form("stage=sft&model=checkpoints/tiny-sft")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.get_by_label("Name of the run?")).to_be_visible()
    llama = page.locator("label.row", has=page.get_by_role("radio", name="llama3"))
    assert llama.evaluate("row => row.scrollWidth <= row.clientWidth")


def test_a_name_that_is_taken_and_a_very_high_learning_rate_are_named_in_the_plan(form):
    page, expect = form("stage=pretrain")
    plan = page.get_by_label("Plan, recipe and command")
    page.get_by_label("Name of the run?").fill("tiny-sft")
    expect(plan).to_contain_text("There is a run named tiny-sft already. This one becomes tiny-sft-2.")
    page.get_by_role("tab", name="Training").click()
    rate = page.get_by_role("textbox", name="Learning rate?", exact=True)
    rate.fill("10")
    expect(plan).to_contain_text("Learning rate 10 is 500 times the usual 0.02 of muon")
    page.get_by_role("tab", name="Model").click()
    plan.get_by_role("link", name="Change it").click()
    expect(rate).to_be_focused()


@pytest.mark.slow
def test_a_run_is_started_from_the_form_with_the_keyboard_alone_and_ends(form, server):
    page, expect = form("stage=pretrain")
    (server.home / "mine.txt").write_text("The cat sat on the mat. " * 400)

    def tab_to(locator):
        for _ in range(120):
            page.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"Tab never reaches {locator}")

    tab_to(page.get_by_role("tab", name="Model"))
    page.keyboard.press("ArrowRight")
    tab_to(page.locator("#data-path"))
    page.keyboard.type("mine.txt\n")
    expect(page.get_by_label("Dataset 1", exact=True)).to_contain_text("1 text file", timeout=120_000)
    page.get_by_role("tab", name="Data").focus()
    page.keyboard.press("ArrowRight")
    tab_to(page.get_by_label("How many steps?"))
    page.keyboard.type("3")
    name = page.get_by_label("Name of the run?")
    tab_to(name)
    page.keyboard.press("Control+A")
    page.keyboard.type("from-the-form")
    expect(page.get_by_label("Plan, recipe and command")).to_contain_text("llm-lab run configs/from-the-form.yaml")
    tab_to(page.get_by_role("button", name="Start", exact=True))
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/from-the-form", timeout=120_000)
    expect(page.locator("main")).to_contain_text("done", timeout=120_000)
    facts = json.loads((server.home / "checkpoints/from-the-form/run.json").read_text())
    assert (facts["status"], facts["recipe"]["train"]["max_steps"]) == ("done", 3)
    assert "max_steps: 3" in (server.home / "configs/from-the-form.yaml").read_text()


@pytest.mark.slow
def test_the_data_is_shown_as_tokens_and_this_can_be_canceled(form):
    page, expect = form("stage=sft&model=checkpoints/tiny-sft#tab-data")
    page.get_by_role("button", name="builtin:instruct").click()
    xray = page.get_by_role("button", name="X-ray")
    xray.click()
    page.get_by_role("button", name="Cancel").click()
    expect(xray).to_be_enabled()
    xray.click()
    expect(page.locator(".token.trained").nth(1)).to_be_visible(timeout=90_000)
    expect(page.locator("main")).to_contain_text("The loss is on")
    expect(page.locator("main")).to_contain_text("their end is cut off")


@pytest.mark.slow
def test_a_tuned_model_and_its_base_answer_side_by_side(page, server):
    from playwright.sync_api import expect

    page.goto(server.link)
    page.goto(f"{server.address}/test?model=tiny-sft")
    page.get_by_label("Prompts", exact=True).fill("What is 2 + 3?")
    page.get_by_label("A: the base").fill("checkpoints/tiny")
    page.get_by_label("Longest output").fill("8")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".output")).to_have_count(2, timeout=90_000)
    expect(page.get_by_label("Measures")).to_contain_text("tokens/s")
