"""A model given by its name on the Hub: its state is recorded, and a change is noticed."""

import re
import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.hub_cache import put_into_cache
from support.post_runs import post_recipe, write_base

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.cached_models import changed_files
from llm_lab.hf.adapter import weights_digest
from llm_lab.hf.load import load_model
from llm_lab.runner import _references, run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lineage import CHANGED, SAME, trace
from llm_lab.runs.replay import compose

GONE = {"status": "running", "process": {"pid": 2**30, "host": socket.gethostname(), "started": 1.0}}


@pytest.fixture
def cached(in_tmp_path, monkeypatch):
    """Put ann/base into a cache of its own; return its first revision."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(in_tmp_path / "cache"))
    return put_into_cache("ann/base", write_base())


def change_weights():
    weights = load_file("base/model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, "base/model.safetensors", {"format": "pt"})
    return put_into_cache("ann/base", "base")


def test_a_change_on_the_hub_is_noticed_by_resume_lineage_replay_and_the_adapter(cached):
    changes = {"model": {"checkpoint": "ann/base"}, "lora": {"r": 2}, "train.max_steps": 3}
    raw = post_recipe("dpo", **changes)
    facts = run(raw)
    folder = RunFolder(Path(facts["path"]))
    assert facts["parent"]["revision"] == cached.name
    assert facts["parent"]["files"].keys() >= {"model.safetensors", "config.json", "tokenizer.json"}

    folder.update(references=_references({"stage": "dpo", "dpo": {"reference": "ann/base"}}), **GONE)
    Path("base/README.md").write_text("Edited.")
    put_revision = put_into_cache("ann/base", "base").name
    assert put_revision != cached.name
    assert run(raw, resume=True)["status"] == "done", "a new README is no other model"
    assert [link.state for link in trace(folder.path, digest_of=weights_digest).links] == [SAME]
    load_model(str(folder.model_path))

    change_weights()
    folder.update(**GONE)
    with pytest.raises(UserError) as caught:
        run(raw, resume=True)
    for key in ("model.checkpoint", "dpo.reference"):
        assert f"{key} = ann/base: model.safetensors changed on the Hub since the run in {folder.path} began" in str(
            caught.value
        )
    assert f"It began with revision {put_revision[:12]}." in str(caught.value)
    folder.update(status="done")
    assert [link.state for link in trace(folder.path, digest_of=weights_digest).links] == [CHANGED]
    remarks = compose(folder.path, name=None, digest_of=weights_digest).remarks
    assert "ann/base: the weights have changed since checkpoints/dpo was made from them" in remarks
    with pytest.raises(UserError, match=r"ann/base is not the one that it was trained on: model.safetensors changed"):
        load_model(str(folder.model_path))


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ({"config.json": "a"}, {"config.json": "a", "merges.txt": "b"}, []),
        ({"config.json": "a"}, {"config.json": "b"}, ["config.json"]),
        ({"a.safetensors": "x"}, {"b.safetensors": "x"}, ["a.safetensors", "b.safetensors"]),
        ({"model.safetensors": "a"}, {}, []),
    ],
)
def test_only_files_that_both_have_are_compared_except_for_weights(before, now, changed):
    assert changed_files(before, now) == changed


def test_show_describes_a_model_that_was_downloaded(cached, capsys):
    assert main(["show", "ann/base"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"ann/base .*architecture .*parameters .*loads in", out)
    assert main(["show", "ann/other"]) == 2
    assert "not on this machine" in capsys.readouterr().err
