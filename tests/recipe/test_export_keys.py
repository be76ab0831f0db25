"""No dead keys in an export: each, changed alone, changes what a real one writes; and each rule has its cases."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.hub_stand_in import HubStandIn, User
from support.post_runs import weights_of, write_base

from llm_lab.errors import LabError
from llm_lab.job import read_job
from llm_lab.recipe.export import EXPORT, ExportRecipe
from llm_lab.recipe.fields import leaf_keys
from llm_lab.runner import run

# The Hub's client hands its files to its HTTP library in a way that this one is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning")
SENT = {"export": {"push": "ann/model"}}
# Each key: what it is changed to, what is seen to change, and what else the recipe needs for it.
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
LEAVES = {f"{owner}.{key.name}": key.path for key, owner in leaf_keys(ExportRecipe) if key.path != "stage"}


def test_every_key_says_how_its_effect_is_seen():
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
    """A hub on loopback in place of the Hub, where ann may write."""
    monkeypatch.setenv("HF_TOKEN", "hf_Writes0123456789")
    with HubStandIn({"hf_Writes0123456789": User("ann")}) as stand_in:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        yield stand_in


def recipe(changes: dict) -> dict:
    raw: dict[str, Any] = {"stage": "export", "device": "cpu", "model": {"checkpoint": "base"}, "export": {}}
    for group, values in copy.deepcopy(changes).items():
        raw[group] |= values
    raw["export"].setdefault("weights", "f16")
    return raw


def observe(raw: dict, hub: HubStandIn) -> dict[str, Any]:
    """Run a recipe; return what is to be seen of it."""
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
    """What recipes before the change show: each is run once."""
    return {}


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_that_is_changed_alone_changes_the_export(key, workplace, hub, observed):
    value, facet, *needs = EFFECTS[key]
    known = str(needs)
    if known not in observed:
        observed[known] = observe(recipe(*needs or [{}]), hub)
        assert "refused" not in observed[known], observed[known]["refused"]
    raw = recipe(*needs or [{}])
    *groups, name = LEAVES[key].split(".")
    (raw[groups[0]] if groups else raw)[name] = value
    after = observe(raw, hub)
    assert facet == "refused" or "refused" not in after, after["refused"]
    assert after.get(facet) != observed[known].get(facet)
    if facet == "refused":
        assert LEAVES[key] in after["refused"]


BROKEN = {
    "_format_has_the_weights": ({"weights": "q8_0"}, "export.weights", {"weights": "q8_0", "to": "gguf"}),
    "_only_a_push_is_private": ({"private": False}, "export.private", {"private": False, "push": "ann/model"}),
}


def test_every_rule_has_its_case():
    assert set(BROKEN) == {rule.__name__ for rule in EXPORT.rules}


@pytest.mark.parametrize(("broken", "key", "sound"), BROKEN.values())
def test_a_broken_rule_is_told_and_what_it_advises_passes(broken, key, sound):
    raw = {"stage": "export", "name": "out", "device": "cpu", "model": {"checkpoint": "base"}}
    assert [problem.key for problem in read_job(raw | {"export": broken})[1]] == [key]
    assert read_job(raw | {"export": sound})[1] == []


@pytest.mark.parametrize(
    ("million", "weights"), [(1, "f32"), (400, "f16")], ids=["a small model stays exact", "a large one is halved"]
)
def test_the_weights_of_a_gguf_file_follow_from_the_models_size(million, weights, in_tmp_path):
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
