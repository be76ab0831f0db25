"""No dead keys in an export: changing one key changes what a real export writes."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.local_hub import LocalHub, User
from support.post_runs import weights_of, write_base

from llm_lab.errors import LabError
from llm_lab.job import read_job
from llm_lab.recipe.export import ExportRecipe
from llm_lab.recipe.fields import leaf_keys
from llm_lab.runner import run

# The Hub client passes files to its HTTP library in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning")
SENT = {"export": {"push": "ann/model"}}
# {key: (its new value, the effect that changes, what else the recipe needs)}
EFFECTS: dict[str, tuple] = {
    "ExportRecipe.name": ("other", "path"),
    "ExportRecipe.seed": (7, "difference"),
    "ExportRecipe.device": ("cuda", "refused"),
    "ModelCheckpoint.checkpoint": ("base-2", "weights"),
    "ExportOptions.to": ("gguf", "files"),
    "ExportOptions.weights": ("bf16", "weights"),
    "ExportOptions.tolerance": (1e-12, "status"),
    "ExportOptions.push": ("ann/other", "repositories", SENT),
    "ExportOptions.private": (False, "private", SENT),
}
# Each of the others takes seconds, for verification in a fresh process.
FAST = ("ExportRecipe.device",)
LEAVES = {f"{owner}.{key.name}": key.path for key, owner in leaf_keys(ExportRecipe) if key.path != "stage"}


def test_every_key_has_a_visible_effect_listed():
    assert set(EFFECTS) == set(LEAVES)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("export"))
    write_base(hidden_size=16, num_hidden_layers=1)
    write_base("base-2", hidden_size=24, num_hidden_layers=1)
    yield
    os.chdir(before)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local stand-in for the Hub, where ann can write."""
    monkeypatch.setenv("HF_TOKEN", "hf_Writes0123456789")
    with LocalHub({"hf_Writes0123456789": User("ann")}) as local_hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", local_hub.url)
        yield local_hub


def recipe(changes: dict) -> dict:
    raw: dict[str, Any] = {"stage": "export", "device": "cpu", "model": {"checkpoint": "base"}, "export": {}}
    for group, values in copy.deepcopy(changes).items():
        raw[group] |= values
    raw["export"].setdefault("weights", "f16")
    return raw


def observe(raw: dict, hub: LocalHub) -> dict[str, Any]:
    """Run a recipe and return its visible effects."""
    hub.repositories.clear()
    try:
        facts = run(raw)
    except LabError as error:
        return {"refused": str(error)}
    return {
        "path": re.sub(r"-\d+$", "", facts["path"]),
        "difference": facts["results"]["logit_difference"],
        "status": facts["status"],
        "files": sorted(path.name for path in Path(facts["path"]).rglob("*")),
        "weights": {name: (values.dtype, values.shape) for name, values in weights_of(facts["path"]).items()},
        "repositories": sorted(hub.repositories),
        "private": [repository.private for repository in hub.repositories.values()],
    }


@pytest.fixture(scope="module")
def observed():
    """The effects of recipes before the change; each is run once."""
    return {}


@pytest.mark.parametrize("key", [pytest.param(key, marks=[] if key in FAST else [pytest.mark.slow]) for key in EFFECTS])
def test_changing_one_key_changes_the_export(key, workplace, hub, observed):
    value, facet, *needs = EFFECTS[key]
    raw = recipe(*needs or [{}])
    *groups, name = LEAVES[key].split(".")
    (raw[groups[0]] if groups else raw)[name] = value
    after = observe(raw, hub)
    if facet == "refused":
        assert LEAVES[key] in after["refused"]
        return
    known = str(needs)
    if known not in observed:
        observed[known] = observe(recipe(*needs or [{}]), hub)
    for found in (after, observed[known]):
        assert "refused" not in found, found["refused"]
    assert after[facet] != observed[known][facet]


@pytest.mark.parametrize(("million", "weights"), [(1, "f32"), (400, "f16")], ids=["small model", "large model"])
def test_the_default_gguf_weights_depend_on_the_model_size(million, weights, in_tmp_path):
    layers = 1 if million == 1 else 40
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_hidden_layers": layers}
    Path("model").mkdir()
    text = str({"model_type": "llama", "vocab_size": 257, **sizes} | {"num_hidden_layers": layers}).replace("'", '"')
    Path("model/config.json").write_text(text)
    raw = {
        "stage": "export",
        "name": "out",
        "device": "cpu",
        "model": {"checkpoint": "model"},
        "export": {"to": "gguf"},
    }
    job, problems = read_job(raw)
    assert not problems
    assert job.stages[0].recipe.export.weights == weights
