"""The form's requests to the server: saving, starting, and what both refuse."""

import json
import shutil

import pytest
from support.web_runs import row, write_run

from llm_lab.runs.lock import hold
from llm_lab.web.launches import Launches


@pytest.fixture
def server(lived_in):
    """A server with a few small runs to start from."""
    return lived_in


PRETRAIN = {"stage": "pretrain", "name": "first", "device": "cpu", "data": [{"path": "builtin:stories"}]}


def refusal(server, path, body, status=400):
    answered, _, text = server.ask("POST", path, body)
    assert answered == status, text
    return json.loads(text)


def test_a_recipe_is_saved_and_replaced_only_with_a_yes(server):
    first = server.api("/api/new/save", {"recipe": PRETRAIN, "name": "mine"})
    assert first == {"file": "configs/mine.yaml"}
    before = (server.home / "configs/mine.yaml").read_text()
    other = {**PRETRAIN, "seed": 7}
    again = refusal(server, "/api/new/save", {"recipe": other, "name": "mine"}, 409)
    assert "configs/mine.yaml exists" in again["problems"][0]["text"]
    assert (server.home / "configs/mine.yaml").read_text() == before
    server.api("/api/new/save", {"recipe": other, "name": "mine", "replace": True})
    assert "seed: 7" in (server.home / "configs/mine.yaml").read_text()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", ".hidden", "", "a\0b"])
def test_a_recipe_is_saved_in_configs_only(server, name):
    said = refusal(server, "/api/new/save", {"recipe": {**PRETRAIN, "name": "x"}, "name": name or "/"})
    assert "a name without folders" in said["problems"][0]["text"]


def test_a_draft_with_problems_does_not_start_and_names_its_keys(server):
    wrong = {**PRETRAIN, "train": {"max_steps": 0}, "optimizer": {"learning_rate": -1}}
    said = refusal(server, "/api/new/start", {"recipe": wrong})
    assert {problem["key"] for problem in said["problems"]} == {"train.max_steps", "optimizer.learning_rate"}
    assert not (server.home / "configs/first.yaml").exists()


def test_what_this_machine_lacks_is_reported_before_anything_is_written(server):
    said = refusal(server, "/api/new/start", {"recipe": {**PRETRAIN, "name": "on-a-gpu", "device": "cuda"}})
    assert "device" in said["problems"][0]["text"]
    assert not (server.home / "configs/on-a-gpu.yaml").exists()


def test_python_code_that_never_ran_here_is_not_started_and_the_command_is_shown(server):
    (server.home / "rewards.py").write_text("open('ran', 'w')\ndef polite(completions, **columns): return [1.0]\n")
    recipe = {
        "stage": "grpo",
        "name": "polite",
        "device": "cpu",
        "grpo": {"max_completion_length": 8},
        "model": {"checkpoint": "checkpoints/tiny-sft"},
    }
    recipe |= {"data": [{"path": "builtin:sums"}], "rewards": [{"python": "rewards.py:polite"}]}
    said = refusal(server, "/api/new/start", {"recipe": recipe})["problems"][0]
    assert said["key"] == "rewards.0.python"
    assert "llm-lab run configs/polite.yaml" in said["text"]
    assert (server.home / "configs/polite.yaml").is_file()  # the shown command can be run as it is
    assert not (server.home / "ran").exists()


@pytest.mark.parametrize("name", ["asdf-model", "banana/nonsense-9000b"])
def test_a_model_that_cannot_be_loaded_is_refused_before_anything_is_written(server, name):
    recipe = {"stage": "sft", "name": "no-model", "device": "cpu", "data": [{"path": "builtin:instruct"}]}
    recipe["model"] = {"checkpoint": name}
    said = refusal(server, "/api/new/start", {"recipe": recipe})["problems"]
    assert [problem["key"] for problem in said] == ["model.checkpoint"]
    assert "no such local folder" in said[0]["text"]
    assert server.api("/api/new/plan", {"recipe": recipe})["found"]["checked"] == said
    both = server.api("/api/new/plan", {"recipe": {**recipe, "data": [{"path": "nothing.jsonl"}]}})["found"]["checked"]
    assert [problem["key"] for problem in both] == ["data.0.path", "model.checkpoint"]
    assert not (server.home / "configs/no-model.yaml").exists()


def test_a_command_that_ends_with_an_error_gives_that_error_as_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    launch = Launches().start(["run", "nothing.yaml"])
    launch.process.wait(60)
    found = launch.as_json()
    assert found["exit_code"] == 2
    assert found["error"].startswith("nothing.yaml: ")
    assert "\n" not in found["error"]


@pytest.mark.parametrize(
    "query", ["stage=nothing", "recipe=../secret", "recipe=/etc/passwd", "from=nothing", "from=../../etc"]
)
def test_an_address_of_the_form_reaches_no_other_file(server, query):
    assert server.ask("GET", f"/new?{query}")[0] == 404


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo", "reward", "grpo", "ppo", "merge", "eval", "export"])
def test_every_stage_has_a_form(server, stage):
    assert server.ask("GET", f"/new?stage={stage}")[0] == 200


def test_every_shipped_recipe_and_a_run_can_be_opened_in_the_form(server):
    for name in ("demo", "stories", "sft-lora-1b", "grpo-gsm8k"):
        assert server.ask("GET", f"/new?recipe={name}")[0] == 200
    for name in ("tiny-sft", "life", "tiny-grpo"):
        assert server.ask("GET", f"/new?from={name}")[0] == 200


def test_a_pipeline_is_changed_as_text_checked_and_saved_under_another_name(server):
    text = server.ask("GET", "/new?recipe=demo")[2].split('id="data">')[1].split("</script>")[0]
    recipe = json.loads(text)["text"]
    seen = server.api("/api/new/pipeline", {"text": recipe.replace("max_steps: 240,", "max_steps: 241,", 1)})
    assert seen["problems"] == []
    assert any(line[1].startswith("241 steps") for stage in seen["stages"] for line in stage["plan"]["lines"])
    wrong = recipe.replace("max_steps: 240,", "max_steps: 0,", 1)
    (problem,) = server.api("/api/new/pipeline", {"text": wrong})["problems"]
    assert "train.max_steps = 0" in problem
    refusal(server, "/api/new/save-pipeline", {"text": wrong, "name": "my-demo"})
    refusal(server, "/api/new/save-pipeline", {"text": recipe, "name": "../my-demo"})
    refusal(server, "/api/new/pipeline", {"text": "stage: sft"})
    saved = server.api("/api/new/save-pipeline", {"text": recipe, "name": "my-demo"})
    assert saved == {"file": "configs/my-demo.yaml", "address": "/new?recipe=my-demo"}
    assert (server.home / "configs/my-demo.yaml").read_text() == recipe
    refusal(server, "/api/new/save-pipeline", {"text": recipe, "name": "my-demo"}, 409)


def test_the_models_page_lists_the_library_and_the_runs(server):
    text = server.ask("GET", "/models")[2]
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert {"tiny", "tiny-sft"} <= {run["name"] for run in data["runs"]}
    shutil.copytree(server.home / "checkpoints" / "tiny", server.home / "checkpoints" / "newer")
    assert '"newer"' in server.ask("GET", "/models")[2]
    assert "checkpoints/newer" in server.ask("GET", "/test")[2]
    library = {row["name"]: row for row in data["library"]}
    assert [one["name"] for one in library["openai-community/gpt2"]["methods"]] == ["all weights", "LoRA", "QLoRA"]
    assert all(one["reason"] for row in library.values() for one in row["methods"])
    sizes = [row["parameters"] for row in data["library"] if row["fits_here"]]
    assert sizes[0] == min(sizes), "on a CPU, what is small comes first"


def test_a_run_without_a_model_yet_is_listed_with_the_reason_why_it_cannot_be_chosen(server):
    folder = write_run(server.home, "busy", status="running", stage="pretrain", rows=[row(1, 3.0)])
    with hold(folder):
        text = server.ask("GET", "/new?stage=sft")[2]
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    whys = {run["path"]: run.get("why_not") for run in data["runs"]}
    assert whys["checkpoints/busy"] == "it has not saved a checkpoint yet"
    assert whys["checkpoints/tiny-sft"] is None
