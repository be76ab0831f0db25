"""From a recipe to a job: which file is read, what is wrong with it, and where a model is loaded from."""

from pathlib import Path

import pytest
import yaml
from conftest import tiny_recipe, write_text
from support.post_runs import write_base

import llm_lab
from llm_lab.errors import MachineError, UserError
from llm_lab.job import SHIPPED_RECIPES, check, find_recipe, list_recipes, read_job
from llm_lab.runner import load, run
from llm_lab.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _in_tmp_path(in_tmp_path):
    write_text("text.txt")


def write_recipe(path: str, **changes) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    raw = {key: value for key, value in tiny_recipe(**changes).items() if key != "name"}
    Path(path).write_text(yaml.safe_dump(raw))
    return path


def test_a_recipe_is_found_by_path_by_name_and_by_run():
    write_recipe("configs/own.yaml")
    write_recipe("checkpoints/done/recipe.yaml")
    assert find_recipe("configs/own.yaml") == find_recipe("own") == find_recipe("own.yaml") == Path("configs/own.yaml")
    write_recipe("here.yaml")
    Path("compose.yaml").write_text("services: {}\n")
    assert find_recipe("here") == find_recipe("here.yaml") == Path("here.yaml")
    assert {file.name for file in list_recipes()} & {"here.yaml", "compose.yaml"} == {"here.yaml"}
    assert find_recipe("done") == Path("checkpoints/done")
    assert find_recipe("checkpoints/done") == Path("checkpoints/done")
    shipped = sorted(SHIPPED_RECIPES.glob("*.yaml"))
    assert find_recipe(shipped[0].stem) == shipped[0]
    assert set(list_recipes()) >= {Path("configs/own.yaml"), *shipped}
    with pytest.raises(UserError, match=r"no such recipe\. Did you mean own\?"):
        find_recipe("owm")
    with pytest.raises(UserError, match="there is no such recipe file"):
        check("elsewhere/own.yaml")


def test_a_users_recipe_hides_the_shipped_one_of_the_same_name():
    name = sorted(SHIPPED_RECIPES.glob("*.yaml"))[0].name
    write_recipe(f"configs/{name}")
    assert find_recipe(name) == Path("configs") / name
    assert [file for file in list_recipes() if file.name == name] == [Path("configs") / name]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("my text (1).yaml", "my-text-1"),
        ("..yaml", "run"),
        ("Größe, déjà 文.yaml", "Grosse-deja"),
        ("checkpoints/old-2/recipe.yaml", "old-2"),
    ],
)
def test_a_run_without_a_name_is_named_after_its_file(path, name):
    job, problems = read_job(write_recipe(path))
    assert problems == []
    assert job.name == name


def test_overrides_apply_and_have_their_own_origin():
    job = check(write_recipe("own.yaml"), ["train.max_steps=3", "data.1.path=builtin:stories"])
    (resolved,) = job.stages
    assert resolved.values["train"]["max_steps"] == 3
    assert [str(resolved.origins[key]) for key in ("train.max_steps", "data.1.path")] == ["override", "override"]
    assert str(resolved.origins["train.eval_steps"]) == "answer"


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("name", ["stories", "nano", "stor"])
def test_a_model_named_in_short_is_resolved_like_its_checkpoint(stage, name):
    """In later stages a name is never a size; in pretraining, the sizes come first."""
    for made in ("stories", "nano"):
        write_base(f"checkpoints/{made}/model")
        RunFolder(Path(f"checkpoints/{made}")).update(name=made, stage="pretrain", status="done")
    recipe = {"stage": stage, "name": "next", "device": "cpu", "data": [{"path": "builtin:sums"}]}
    if stage == "pretrain" and name == "nano":
        assert check(recipe | {"model": name}).stages[0].values["model"]["size"] == "nano"
        return
    wanted = check(recipe | {"model": {"checkpoint": name}})
    full = "checkpoints/stories" if name == "stor" else f"checkpoints/{name}"
    assert wanted.stages[0].values["model"] == {"checkpoint": full}
    assert wanted.stages[0].estimate.parameters
    Path("next.yaml").write_text(yaml.safe_dump(recipe))
    inside = {"name": "next", "stages": [recipe | {"model": name}]}
    for job in (check(recipe | {"model": name}), check("next.yaml", [f"model={name}"]), check(inside)):
        assert job.stages[0].values == wanted.stages[0].values
        assert job.stages[0].estimate == wanted.stages[0].estimate


def test_problems_of_recipe_and_data_are_reported_together():
    raw = tiny_recipe(data=[{"path": "gone.txt"}, {"path": "text.txt", "text_column": "body"}])
    raw["model"]["num_attention_heads"] = 3
    with pytest.raises(UserError) as caught:
        check(raw)
    assert [problem.key.split(".")[0] for problem in caught.value.problems].count("data") >= 1
    assert "model.num_attention_heads" in [problem.key for problem in caught.value.problems]
    assert "gone.txt" in str(caught.value)


def test_a_run_that_cannot_start_writes_nothing():
    with pytest.raises(MachineError):
        run(tiny_recipe(device="cuda"))
    with pytest.raises(UserError):
        run(tiny_recipe(), ["sede=1"])
    assert not Path("checkpoints").exists()


def test_the_python_api_does_what_the_commands_do():
    facts = llm_lab.run(tiny_recipe(), "train.max_steps=2", "scheduler.warmup_steps=0")
    assert facts["results"]["step"] == 2
    for name in ("tiny", "checkpoints/tiny", "checkpoints/tiny/model", "checkpoints/tiny/steps/checkpoint-2"):
        model, tokenizer = llm_lab.load(name)
        assert not model.training
        assert len(tokenizer) == 257
    replayed = llm_lab.run("tiny", overwrite=True)
    assert replayed["results"]["eval_loss"] == facts["results"]["eval_loss"]


def test_a_missing_model_is_reported():
    with pytest.raises(UserError, match=r"checkpoint = org/name.*Hub can't be reached"):
        load("org/name")
    for name in ("nothing", "checkpoints/nothing", "./a/b"):
        with pytest.raises(UserError, match="there is no such run or model"):
            load(name)


def test_a_run_that_is_stopped_before_its_first_file_leaves_no_folder(monkeypatch):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_lab.runner.importlib.import_module", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe())
    assert not list(Path("checkpoints").iterdir()), "its name is free again"
