"""Experiments, sweeps and duels in the page: listed, checked as the user types, started, watched, stopped, resumed."""

import json
import re
from pathlib import Path

import pytest

from llm_lab.runs.folder import RunFolder
from llm_lab.studies.duel import plan_duel
from llm_lab.studies.experiment_files import list_experiments

OWN = '''"""Sums of numbers, <b>and a picture</b> of them.

What to expect: they grow.
"""
import time
from pathlib import Path
from typing import Literal
from pydantic import BaseModel, Field
from llm_lab.runs.plots import draw_bars

APP_NAME = "Sums"
TAKES = "about a second"

class Options(BaseModel):
    numbers: list[int] = Field([1, 2], min_length=1, description="numbers to add")
    factor: int = Field(1, ge=1, le=9, description="what each is multiplied with")
    wait_for: str = Field("", description="a file to wait for")
    kind: Literal["plain", "loud"] = Field("plain", description="how it speaks")

def run(options, study):
    study.heading("What was added")
    study.say("adding")
    while options.wait_for and not Path(options.wait_for).exists():
        time.sleep(0.05)
    rows = [(number, number * options.factor) for number in options.numbers]
    study.table("numbers", ["number", "times the factor"], rows, "<img src=x onerror=alert(1)>")
    svg = draw_bars([(str(a), b) for a, b in rows], title="Numbers", x="value")
    study.picture("bars", svg, "Each `number` is a bar.")
    study.result("sum", sum(b for _, b in rows))
'''


@pytest.fixture(scope="module")
def home(server):
    """The folder of the server, with an experiment by the user and a broken one."""
    folder = server.home / "experiments"
    folder.mkdir()
    (folder / "sums.py").write_text(OWN)
    (folder / "broken.py").write_text("APP_NAME = 'Broken'\ndef run(options, study): pass\n")
    return server.home


def data_of(text):
    """Return the data that a page passes to its scripts."""
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def test_the_page_lists_what_llm_lab_study_lists(server, home, monkeypatch):
    monkeypatch.chdir(home)
    shown = data_of(server.ask("GET", "/experiments")[2])["experiments"]
    assert [one["name"] for one in shown] == [one.name for one in list_experiments()]
    by_name = {one["name"]: one for one in shown}
    assert by_name["sums"]["own"] is True
    assert by_name["sums"]["takes"] == "about a second"
    assert by_name["broken"]["error"] == "it has no class Options(BaseModel)"
    assert by_name["learning_rate"]["takes"] == "about 5 minutes on two cores"
    assert server.ask("GET", "/experiments/none")[0] == 404


def test_options_are_checked_as_the_command_checks_them(server, home):
    def check(**options):
        return server.api("/api/experiments/check", {"name": "sums", "options": options})

    assert check(numbers="1,2", factor="") == {"command": "llm-lab study sums", "problems": []}
    assert check(numbers="3, 4", factor="2")["command"] == "llm-lab study sums numbers=3,4 factor=2"
    [problem] = check(factor="12")["problems"]
    assert problem["key"] == "factor"
    assert "Allowed: a whole number from 1 to 9" in problem["text"]


def test_a_model_that_is_not_there_is_refused_before_a_study_starts(server, home):
    (home / "checkpoints" / "small" / "model").mkdir(parents=True)
    (home / "checkpoints" / "small" / "model" / "config.json").write_text("{}")
    for model, wrong in (("nonsense", True), ("small", False), ("checkpoints/small", False), ("owner/name", False)):
        asked = {"name": "probing", "options": {"model": model}}
        problems = server.api("/api/experiments/check", asked)["problems"]
        assert [one["key"] for one in problems] == ["model"] * wrong
        if wrong:
            assert problems[0]["text"].startswith("model = nonsense: there is no such run or model.")
            assert server.ask("POST", "/api/experiments/start", asked)[0] == 400
    option = data_of(server.ask("GET", "/experiments/probing?model=small&steps=20")[2])
    assert option["given"] == {"model": "small", "steps": "20"}
    assert [one["name"] for one in option["options"] if one["is_model"]] == ["model"]


def test_an_experiment_that_ended_at_once_is_among_the_results_and_leads_back_to_its_form(server, home, page):
    from playwright.sync_api import expect

    file = home / "experiments" / "late.py"
    file.write_text(OWN.replace("Sums", "Late"))
    server.api("/api/experiments/start", {"name": "late", "options": {"numbers": "7", "factor": "2"}})
    file.unlink()  # before the new process can read it
    page.goto(server.link)
    line = page.locator("#rows tr", has_text="late")
    expect(line.locator(".status")).to_have_text("failed", timeout=120_000)
    expect(line).to_contain_text("there is no such study")
    file.write_text(OWN.replace("Sums", "Late"))
    page.goto(f"{server.address}/experiments")
    line = page.locator("#results tr", has_text="late")
    expect(line.locator(".status.failed")).to_be_visible()
    expect(line).to_contain_text("there is no such study")
    line.get_by_role("link", name="Change and start again").click()
    expect(page.get_by_label("Numbers to add")).to_have_value("7")
    expect(page.locator("#command")).to_contain_text("llm-lab study late numbers=7 factor=2")
    page.get_by_role("button", name="Dismiss late").click()
    expect(page.get_by_role("button", name="Dismiss late")).to_be_hidden()
    (home / "experiments" / "late.py").unlink()


def test_a_recipe_is_chosen_from_a_visible_list(server, home, page):
    from playwright.sync_api import expect

    page.goto(server.link)
    page.goto(f"{server.address}/experiments/sweep?recipe=configs/none.yaml&key=seed=1,2&seeds=4")
    recipe = page.get_by_label("Recipe", exact=True)
    expect(recipe).to_have_value("configs/none.yaml")
    expect(page.get_by_label("Values, separated by commas")).to_have_value("1,2")
    expect(page.get_by_label("Seeds")).to_have_value("4")
    recipe.click()
    page.get_by_role("option", name="stories").first.click()
    expect(page.locator("#command")).to_contain_text("stories")


def test_an_experiment_is_started_from_its_form_stopped_resumed_and_its_results_appear(server, home, page):
    from playwright.sync_api import expect

    page.goto(server.link)
    page.goto(f"{server.address}/experiments")
    page.get_by_role("link", name=re.compile("Sums")).click()
    expect(page.locator("#summary")).to_have_text("Sums of numbers, <b>and a picture</b> of them.")
    factor = page.get_by_label("What each is multiplied with")
    factor.fill("99")
    expect(page.get_by_text("Allowed: a whole number from 1 to 9")).to_be_visible()
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    factor.fill("3")
    page.get_by_label("A file to wait for").fill("go.txt")
    expect(page.locator("#command")).to_contain_text("llm-lab study sums factor=3 wait_for=go.txt")
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
    factor.press("Enter")
    page.get_by_role("button", name="Stop").click(timeout=120_000)
    expect(page.locator(".status.stopped").first).to_be_visible(timeout=20_000)
    assert page.url.endswith("/experiments/run/sums")
    (home / "go.txt").write_text("")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".status.done").first).to_be_visible(timeout=120_000)
    assert len(RunFolder(home / "checkpoints" / "sums").facts()["resumed_at"]) == 1
    expect(page.locator("#results")).to_contain_text("sum9")
    table = page.get_by_role("region", name="<img src=x onerror=alert(1)>")
    expect(table.get_by_role("row")).to_have_text(["numbertimes the factor", "13", "26"])
    table.get_by_role("button", name="number", exact=True).click()
    table.get_by_role("button", name="number", exact=True).click()
    expect(table.get_by_role("row")).to_have_text(["numbertimes the factor", "26", "13"])
    picture = page.get_by_role("img", name="Each `number` is a bar.")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 100
    page.get_by_role("link", name="Change and start again").click()
    expect(factor).to_have_value("3")
    expect(page.get_by_role("link", name="sums", exact=True)).to_be_visible()


def test_pictures_are_served_as_images_and_nothing_else_is(server, home):
    run = home / "checkpoints" / "drawn"
    (run / "pictures").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    (run / "pictures" / "one.svg").write_text(svg)
    (run / "look.html").write_text("<script>alert(1)</script>")
    (home / "outside.svg").write_text(svg)
    (run / "pictures" / "link.svg").symlink_to(home / "outside.svg")
    status, headers, _ = server.ask("GET", "/runs-files/drawn/pictures/one.svg")
    assert status == 200
    assert headers["content-type"] == "image/svg+xml"
    assert headers["content-security-policy"].endswith("sandbox")
    assert headers["x-content-type-options"] == "nosniff"
    for name in (
        "drawn/look.html",
        "drawn/run.json",
        "drawn/pictures/link.svg",
        "../outside.svg",
        "%2e%2e/outside.svg",
    ):
        assert server.ask("GET", f"/runs-files/{name}")[0] == 404, name


# --- sweeps and duels

RECIPE = """
stage: pretrain
name: tiny
device: cpu
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}
tokenizer: bytes
data: [{path: text.txt}]
train: {max_steps: 4, max_length: 16, per_device_train_batch_size: 2, eval_steps: 2, logging_steps: 1}
"""


@pytest.fixture(scope="module")
def recipe(home):
    (home / "tiny.yaml").write_text(RECIPE)
    (home / "text.txt").write_text("The old stone falls near the green river. " * 200)
    return "tiny.yaml"


def test_a_sweep_is_planned_before_anything_runs(lived_in, home, recipe):
    server = lived_in  # its worker has loaded the libraries
    for file in (recipe, "text.txt"):
        (server.home / file).write_text((home / file).read_text())
    form = {"kind": "sweep", "recipe": recipe, "seeds": "2"}
    rates = [{"key": "optimizer.learning_rate", "values": "0.001,0.01"}]
    found = server.api("/api/experiments/compare/check", {**form, "keys": rates})
    assert found["command"] == "llm-lab sweep tiny.yaml optimizer.learning_rate=0.001,0.01 --seeds 2"
    assert found["plan"]["runs"] == 4
    assert dict(found["plan"]["rows"])["runs"] == "4 to run, one after the other"
    wrong = server.api("/api/experiments/compare/check", {**form, "keys": [{"key": "optimizer.rate", "values": "1,2"}]})
    assert "optimizer.rate" in wrong["problems"][0]["text"]
    assert "plan" not in wrong
    one = server.api("/api/experiments/compare/check", {**form, "keys": [{"key": "seed", "values": "1,2"}]})
    assert "Use 2 seeds" in one["problems"][0]["text"]
    duel = server.api("/api/experiments/compare/check", {"kind": "duel", "recipe": recipe, "keys": rates, "seeds": "6"})
    named = server.api("/api/experiments/compare/check", {**form, "keys": rates, "name": "mine", "jobs": "2"})
    assert named["plan"]["name"] == "mine"
    assert dict(named["plan"]["rows"])["runs"] == "4 to run, 2 at a time"
    assert duel["command"] == "llm-lab duel tiny.yaml optimizer.learning_rate=0.001,0.01 --seeds 6"
    assert "runs of the slower recipe with fewer steps" in dict(duel["plan"]["rows"])["then"]
    assert not list((server.home / "checkpoints").glob("*/sweep.json"))
    names = [key["name"] for key in server.api("/api/experiments/keys", {"recipe": recipe})["keys"]]
    assert {"optimizer.learning_rate", "model.hidden_size", "train.max_steps"} <= set(names)


def test_the_page_of_a_duel_says_what_was_compared_and_nothing_else(server, home, recipe, monkeypatch):
    monkeypatch.chdir(home)
    words = ["optimizer.learning_rate=0.001,0.01"]
    command = f"llm-lab duel {recipe} {words[0]} --seeds 6 --by tokens --name rates"
    duel = plan_duel(recipe, words, seeds=6, by="tokens", name="rates", command=command)
    duel.write()
    for number, cell in enumerate(duel.cells()):
        cell.folder.mkdir()
        is_first = cell.configuration is duel.configurations[0]
        results = {"eval_loss": 5.0 + is_first + 0.01 * number, "train_tokens": 400, "wall_seconds": 2.0}
        results["tokens_per_second"] = 400.0 if is_first else 200.0
        RunFolder(cell.folder).update(
            status="done", stage="pretrain", results=results, recipe={**cell.recipe, "train": {"max_steps": 4}}
        )
    study = data_of(server.ask("GET", "/experiments/run/rates")[2])["study"]
    assert study["status"] == "done"
    assert study["command"] == command
    assert len(study["runs"]) == 12
    headings = [block["text"] for block in study["blocks"] if block["kind"] == "heading"]
    assert "At equal tokens" in headings
    assert "At equal time" not in headings  # it was not requested
    assert any("is better than" in block.get("text", "") for block in study["blocks"])
    [listed] = [one for one in data_of(server.ask("GET", "/experiments")[2])["results"] if one["name"] == "rates"]
    assert (listed["kind"], listed["results"]) == ("duel", ["12 of 12 runs done"])


def test_a_word_that_the_command_would_read_as_an_option_is_refused(server, recipe):
    for form in ({"recipe": "--trust-recipe"}, {"recipe": recipe, "keys": [{"key": "--trust-recipe", "values": "1"}]}):
        status, _, text = server.ask("POST", "/api/experiments/compare/start", {"kind": "sweep", **form})
        assert status == 400, text


@pytest.mark.slow
def test_a_sweep_is_started_stopped_resumed_and_shown(server, home, recipe, page):
    from playwright.sync_api import expect

    page.goto(server.link)
    page.goto(f"{server.address}/experiments/sweep?recipe={recipe}")
    page.get_by_label("Key", exact=True).fill("optimizer.learning_rate")
    page.get_by_label("Values, separated by commas").fill("0.001,0.01")
    page.get_by_label("Seeds").fill("1")
    page.get_by_text("More options").click()
    page.get_by_label("Name").fill("swept")
    expect(page.get_by_role("button", name="Start")).to_be_enabled(timeout=120_000)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#progress .status.running").first).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#actions .status.stopped")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#actions .status.done")).to_be_visible(timeout=120_000)
    expect(page.locator("#progress")).to_contain_text("2 of 2 done")
    expect(page.locator(".report img").first).to_be_visible()
    assert Path(home / "checkpoints/swept/report.html").is_file()
