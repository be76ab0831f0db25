"""The stages: one record each, added in one place, and resolved once per command."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import tiny_recipe, write_text

from llm_lab import cli
from llm_lab.job import check
from llm_lab.recipe import registry, resolve
from llm_lab.recipe.registry import BUILT_IN, STAGES, json_schema, named_in
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
NAMES = {stage.name for stage in BUILT_IN}

# The complete stage that docs/stages.md shows: its recipe and what runs it.
PAGE = (ROOT / "docs" / "stages.md").read_text()
TOY_RECIPE, TOY_MODULE, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(TOY_PROJECT,) = (tomllib.loads(block)["project"] for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def toy_stage(in_tmp_path, monkeypatch):
    """A package outside LLM Lab that registers a stage."""
    package = Path("toy_lab")
    package.mkdir()
    (package / "__init__.py").write_text(TOY_RECIPE)
    (package / "greet.py").write_text(TOY_MODULE)
    monkeypatch.syspath_prepend(".")
    before = dict(STAGES)
    __import__("toy_lab")
    yield
    STAGES.clear()
    STAGES.update(before)
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_lab"]:
        del sys.modules[name]


def test_a_stage_from_another_package_runs_from_a_recipe_file(toy_stage, capsys):
    Path("greet.yaml").write_text("stage: toy\ndevice: cpu\n")
    assert cli.main(["check", "greet.yaml"]) == 0
    assert "model   " not in capsys.readouterr().out
    facts = run("greet.yaml", ["toy.times=2"])
    folder = RunFolder(Path(facts["path"]))
    assert (facts["status"], facts["stage"], facts["results"]["times"]) == ("done", "toy", 2)
    assert (folder.path / "greeting.txt").read_text() == "hello hello"
    assert yaml.safe_load(folder.recipe_path.read_text())["toy"] == {"times": 2}
    assert "greet" in folder.report_path.read_text()
    assert run(folder.recipe_path)["results"]["times"] == 2


def test_the_command_knows_the_stages_of_an_installed_package(in_tmp_path):
    name, version = TOY_PROJECT["name"], TOY_PROJECT["version"]
    site = {
        "toy_lab/__init__.py": TOY_RECIPE,
        "toy_lab/greet.py": TOY_MODULE,
        f"toy_lab-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"toy_lab-{version}.dist-info/entry_points.txt": "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in TOY_PROJECT["entry-points"].items()
        ),
    }
    for name, text in site.items():
        Path("site", name).parent.mkdir(parents=True, exist_ok=True)
        Path("site", name).write_text(text)
    Path("greet.yaml").write_text("stage: toy\ndevice: cpu\n")

    def lab(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["site", str(ROOT)])}
        command = [sys.executable, "-m", "llm_lab", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    ended = lab("run", "greet.yaml")
    assert ended.returncode == 0, ended.stderr
    (greeting,) = Path("checkpoints").glob("*/greeting.txt")
    assert greeting.read_text() == "hello hello hello"
    Path("site/toy_lab/__init__.py").write_text("import a_missing_package\n")
    refused = lab("check", "greet.yaml")
    assert refused.returncode == 2
    assert "toy_lab: ModuleNotFoundError: No module named 'a_missing_package'" in " ".join(refused.stderr.split())


def test_a_stage_from_another_package_is_checked_derived_and_described_like_ours(toy_stage, capsys):
    job = check({"stage": "toy", "device": "cpu"})
    assert str(job.stages[0].origins["toy.times"]) == "derived: polite"
    assert cli.main(["run", "--dry-run", "greet.yaml"]) == 2  # there is no such file
    Path("greet.yaml").write_text("stage: toy\ndevice: cpu\ntoy: {times: 10, tims: 2}\n")
    capsys.readouterr()
    assert cli.main(["check", "greet.yaml"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "toy.times = 10: too often. Allowed: 1 to 9." in said
    assert "toy.tims: unknown key of toy. Did you mean times?" in said
    assert "ToyRecipe" in json.dumps(json_schema())


def test_a_stage_name_can_be_registered_once_only(toy_stage):
    from dataclasses import replace

    registry.register(STAGES["toy"])  # the same stage again changes nothing
    with pytest.raises(ValueError, match="already a stage named toy"):
        registry.register(replace(STAGES["toy"], title="Another"))


def test_each_stage_says_what_other_layers_need():
    for stage in BUILT_IN:
        said = {field: getattr(stage, field) for field in ("title", "label", "about", "next_step")}
        assert all(said.values()), f"{stage.name}: {said}"
        assert stage.recipe.model_fields["stage"].default == stage.name
        assert set(stage.next) <= NAMES - {stage.name}
        assert not stage.trains or stage.examples in ("text", "conversation", "preference", "prompt")
        assert not stage.rows_per_example or stage.rows_per_example.startswith(f"{stage.name}.")


def test_one_walk_finds_every_model_config_tokenizer_and_function_that_a_recipe_names():
    values = {
        "stage": "ppo",
        "model": {"checkpoint": "base"},
        "ppo": {"critic": "scorer"},
        "rewards": [{"model": "scorer"}, {"python": "mine.py:near"}],
        "score": {"path": "asked.jsonl", "rewards": [{"model": "other"}]},
        "data": [{"path": "base"}],
    }
    named = {"model.checkpoint": "base", "ppo.critic": "scorer", "rewards.0.model": "scorer"}
    assert dict(named_in(values, "model")) == {**named, "score.rewards.0.model": "other"}
    assert list(named_in(values, "function")) == [("rewards.1.python", "mine.py:near")]
    pretraining = {"stage": "pretrain", "model": {"config": "shape"}, "tokenizer": "gpt2"}
    assert dict(named_in(pretraining)) == {"model.config": "shape", "tokenizer": "gpt2"}
    assert dict(named_in({"stage": "pretrain", "model": {"size": "nano"}})) == {}
    assert dict(named_in({"stage": "of a later version", "model": {"checkpoint": "base"}})) == {}


@pytest.fixture
def counted(monkeypatch):
    """Count how often recipes are validated, derived and read."""
    counts = {"validate": 0, "derive": 0, "read": 0}

    def count(module, name, kind):
        function = getattr(module, name)

        def counting(*args, **keys):
            counts[kind] += 1
            return function(*args, **keys)

        monkeypatch.setattr(module, name, counting)

    from llm_lab import job

    count(resolve, "validate_as", "validate")
    count(resolve, "derive", "derive")
    count(job, "read_recipe_file", "read")
    return counts


@pytest.mark.parametrize("command", ["check", "run --dry-run", "run"])
def test_a_command_reads_its_recipe_once_and_resolves_each_stage_once(in_tmp_path, counted, command):
    write_text("text.txt")
    Path("own.yaml").write_text(yaml.safe_dump(tiny_recipe(**{"train.max_steps": 3})))
    assert cli.main([*command.split(), "own.yaml"]) == 0
    assert counted == {"validate": 1, "derive": 1, "read": 1}


# Files that may contain the name of a stage that is not their own, each with a reason. At most five.
RECIPES = "studies/experiments/"  # an experiment names the stage of its recipe, like a YAML file
ALLOWED = {
    "studies/small_runs.py": "the recipe that experiments pretrain small models with",
    "__init__.py": "the names of the functions in Python",
    "commands/arguments.py": "eval and export are commands too; the parser imports no recipe",
    "wizard/home.py": "the first screen imports no recipe",
}
UNAMBIGUOUS = {"pretrain", "sft", "dpo", "grpo", "ppo"}


def typed_names(file: Path) -> list[str]:
    """Return the stage names that a file contains as text to distinguish stages, with their lines.

    Some names also mean other things (the reward of an answer): they count only if stages are compared, listed
    or used as keys.
    """
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        texts: list[ast.expr] = []
        certain = False
        if isinstance(node, ast.Compare):
            texts = [node.left, *node.comparators]
            texts += [item for one in texts if isinstance(one, ast.Tuple | ast.List | ast.Set) for item in one.elts]
            certain = "stage" in ast.unparse(node)
        elif isinstance(node, ast.Dict):
            texts = [key for key in node.keys if key is not None]
            texts += [value for key, value in zip(node.keys, node.values, strict=True) if _text(key) == "stage"]
            certain = any(_text(key) == "stage" for key in node.keys)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            texts = list(node.elts)
        elif isinstance(node, ast.Call):
            texts = [*node.args, *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.Subscript):
            texts = [node.slice]
            certain = "STAGES" in ast.unparse(node.value)
        names = {_text(text) for text in texts} & NAMES
        if names & UNAMBIGUOUS or (names and (certain or len(names) > 1)):
            found += [f"{node.lineno}: {name}" for name in sorted(map(str, names))]
    return found


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_the_name_of_a_stage_appears_only_in_its_own_files():
    own = {f"{folder}/{name}.py" for folder in ("recipe", "stages") for name in NAMES}
    own |= {"stages/dpo_trainer.py"}  # there, "sft" is TRL's name for a loss
    found = {}
    for file in sorted((ROOT / "llm_lab").glob("**/*.py")):
        place = str(file.relative_to(ROOT / "llm_lab"))
        if place not in own and place not in ALLOWED and not place.startswith(RECIPES) and (typed := typed_names(file)):
            found[place] = typed
    assert found == {}
    assert len(ALLOWED) <= 5
