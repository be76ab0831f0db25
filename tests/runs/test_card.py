"""The model card has the facts that the run recorded, its code works, and it reveals nothing about the machine."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny_recipe, write_text
from huggingface_hub import ModelCard
from support.post_runs import post_recipe, write_base
from transformers import AutoModelForCausalLM

from llm_lab import runner
from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.formatting import count
from llm_lab.export.gguf_file import write_gguf
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.runs.card import write_card
from llm_lab.runs.card_answers import keep_answers, license_facts, read_answers
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.report import keep_evaluation

PROOF = {
    "verdict": "proven",
    "checks": [
        {
            "program": "Transformers",
            "verdict": "proven",
            "reason": "",
            "loaded_as": "LlamaForCausalLM",
            "logit_difference": 1.24e-6,
            "relative_logit_difference": 3e-7,
            "tolerance": 1e-4,
            "greedy_agreement": 0.998,
            "positions": 512,
            "texts_alike": 8,
            "texts": 9,
        },
        {"program": "llama.cpp", "verdict": "not tried", "reason": "llama-cpp-python is not installed"},
    ],
}


def front(text: str) -> dict:
    """The front matter of a card, as the Hub's own class reads it."""
    card = ModelCard(text)
    assert card.data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    return card.data.to_dict()


def codes(text: str, language: str) -> list[str]:
    return re.findall(rf"^(`{{3,}}){language}\n(.*?)\n\1$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def pretrained(in_tmp_path) -> RunFolder:
    write_text("text.txt")
    return RunFolder(Path(runner.run(tiny_recipe())["path"]))


def pretend_run(path: str, **facts) -> Path:
    """A run with the model of `write_base` and facts as the runner writes them; returns its model folder."""
    run = RunFolder(Path(path))
    write_base(str(run.model_path))
    run.update(**{"name": run.path.name, "stage": "sft", "status": "done", "device": "cuda", "results": {}} | facts)
    run.write_recipe("stage: sft\n")
    return run.model_path


def test_a_finished_run_has_a_card_with_its_record(pretrained):
    text = (pretrained.model_path / "README.md").read_text()
    facts = pretrained.facts()
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llm-lab", "pretrain"],
    }
    assert f"| parameters | {count(facts['parameters'])} ({facts['parameters']:,}) |" in text
    assert f"| parts | {facts['model']} |" in text
    assert f"| tokens trained on in this stage | {facts['results']['train_tokens']:,} |" in text
    assert f"| validation loss | {facts['results']['eval_loss']:.4f} | nats per token" in text
    assert facts["data"][0]["fingerprint"][:12] in text
    assert facts["machine"] in text
    assert f"torch {facts['versions']['torch']}" in text
    assert "Trained in CPU mode" in text
    recipe = pretrained.recipe_path.read_text()
    assert yaml.safe_load(codes(text, "yaml")[0][1]) == yaml.safe_load(recipe)


@pytest.mark.usefixtures("in_tmp_path")
def test_author_license_and_use_are_given_once_and_are_in_every_later_card(quick_verification):
    model, other = pretend_run("checkpoints/mine"), pretend_run("checkpoints/other")
    words = ["--author", "Ada *Lovelace*", "--license", "Apache-2.0", "--intended-use", "My shop.\nNo more."]
    assert main(["export", "mine", "--out", "exported", *words]) == 0
    card = Path("exported/README.md").read_text()
    assert front(card)["license"] == "apache-2.0"
    assert "| author | Ada \\*Lovelace\\* |" in card
    assert "## Intended use\n\nMy shop.\n\nNo more.\n" in card
    text = write_card(other)
    assert front(text)["license"] == "apache-2.0"
    assert "Ada" in text
    assert "My shop" not in text, "the intended use is that of one model"
    keep_answers({"license": "", "limitations": "English only."}, RunFolder(model.parent))
    text = write_card(model)
    assert "license" not in front(text)
    assert "## Limitations\n\nEnglish only." in text


def test_a_license_that_the_hub_does_not_know_is_named_as_other():
    assert license_facts("MIT") == {"license": "mit"}
    assert license_facts("My own 1.0") == {"license": "other", "license_name": "my-own-1.0"}


@pytest.mark.parametrize("text", ["- a list", "author: [1]", "licence: mit", "a: b: c"])
def test_answers_that_cannot_be_read_stop_an_export_but_not_a_run(in_tmp_path, text):
    model = pretend_run("checkpoints/mine")
    Path("checkpoints/card.yaml").write_text(text)
    with pytest.raises(UserError, match=r"card.yaml.*author, license, intended_use, limitations"):
        read_answers(RunFolder(model.parent))
    runner._write_report_and_card(RunFolder(model.parent))
    assert "The model card has no author and no license" in RunFolder(model.parent).report_path.read_text()
    assert (model / "README.md").is_file()


@pytest.mark.usefixtures("in_tmp_path")
def test_a_card_says_how_many_parameters_were_trained():
    text = write_card(pretend_run("checkpoints/mine", parameters=1_234_567, trained_parameters=12_345))
    assert "| parameters trained in this stage | 12 k (12,345) of 1.2 M |" in text


def test_the_code_of_a_card_runs_as_it_is(in_tmp_path, run_without_llm_lab):
    write_base("base")
    write_base("own", norm="layernorm", activation="relu")
    runner.run(post_recipe("sft", **{"lora": {"r": 2}}))
    runner.run(post_recipe("sft", **{"name": "own-sft", "model": {"checkpoint": "own"}, "lora": {"r": 2}}))
    runner.run(post_recipe("reward"))
    folders = {
        "native": "base",
        "own code": "own",
        "adapter": "checkpoints/sft/model",
        "adapter on own code": "checkpoints/own-sft/model",
        "reward model": "checkpoints/reward/model",
    }
    program = []
    for kind, folder in folders.items():
        text = write_card(Path(folder)) if kind in ("native", "own code") else Path(folder, "README.md").read_text()
        assert ("trust_remote_code=True" in text) == ("own code" in kind)
        ((_, code),) = codes(text, "python")
        # An adapter's base has the name in its recipe, which is relative to where the run was started.
        code = code.replace('"."', json.dumps(folder))
        program.append(f"exec({code!r}, {{}})")
    gguf = Path("gguf")
    gguf.mkdir()
    native, tokenizer = AutoModelForCausalLM.from_pretrained("base"), load_tokenizer("base")
    write_gguf(native, tokenizer, gguf / "base-f32.gguf", weights="f32", name="base")
    text = write_card(gguf, proof=PROOF)
    in_python = [code for _, code in codes(text, "python")]
    assert len(in_python) == 2
    if importlib.util.find_spec("llama_cpp") is None:
        in_python = [code for code in in_python if "llama_cpp" not in code]
    program += ["os.chdir('gguf')", *(f"exec({code!r}, {{}})" for code in in_python)]
    printed = run_without_llm_lab("\n".join(["import os", *program]))
    assert "[y/N]" not in printed
    assert "tensor([[" in printed
    assert front(Path("checkpoints/sft/model/README.md").read_text())["library_name"] == "peft"
    reward_model = front(Path("checkpoints/reward/model/README.md").read_text())
    assert reward_model["pipeline_tag"] == "text-classification"


def test_a_card_reveals_no_local_paths_and_no_secrets(tmp_path, monkeypatch):
    home = tmp_path / "home of someone" / "projects"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345678")
    monkeypatch.setenv("MY_API_KEY", "a-key-of-mine")
    text = write_text(home / "my corpus.txt")
    for secret in ("hf_abcdefgh12345678", "https://me:my-password@host/x"):
        with pytest.raises(
            UserError, match=r"samples.prompts: this looks like an access token or a password"
        ) as refused:
            runner.run(tiny_recipe(text, **{"samples.prompts": ["the", secret]}), root=home / "checkpoints")
        assert secret not in str(refused.value)
    run = runner.run(tiny_recipe(text, **{"samples.prompts": ["see /srv/data/x.txt"]}), root=home / "checkpoints")
    folder = RunFolder(Path(run["path"]))
    folder.update(warnings=["key a-key-of-mine, hf_abcdefgh12345678, https://me:my-password@host/x"])
    assert folder.facts()["warnings"] == ["key ***, ***, https://***@host/x"]
    write_card(folder.model_path)
    card = Path(run["path"], "model", "README.md").read_text()
    for private in (
        "home of someone",
        "projects",
        str(tmp_path),
        "hf_abcdefgh",
        "a-key-of-mine",
        "/srv",
        os.uname()[1],
    ):
        assert private not in card, private
    assert "path: my corpus.txt" in card
    assert "see x.txt" in card


def test_text_of_the_user_does_not_break_the_card(in_tmp_path):
    data = [{"path": "a|b`c`<i>.txt", "fingerprint": "0" * 64}]
    model = pretend_run("checkpoints/a: <b> [c]", data=data, warnings=["<script> | x"])
    odd = "stage: sft\nname: odd\nsamples:\n  prompts: ['---', '```yaml']\n"
    RunFolder(model.parent).write_recipe(odd)
    text = write_card(model)
    assert front(text)["tags"] == ["llm-lab", "sft"]
    assert "<script>" not in text
    assert r"# a: &lt;b> \[c\]" in text
    rows = [line for line in text.splitlines() if line.startswith("| `a")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 4
    ((marks, recipe),) = codes(text, "yaml")
    assert len(marks) > 3
    assert recipe == odd.strip()


def test_the_base_is_named_only_if_it_is_on_the_hub(in_tmp_path):
    local = pretend_run("checkpoints/one", parent={"path": "somewhere/gone/model", "digest": "0"})
    assert "base_model" not in front(write_card(local))
    tuned = pretend_run("checkpoints/two", parent={"path": "owner/base", "digest": None})
    found = front(write_card(tuned))
    assert (found["base_model"], found["base_model_relation"]) == ("owner/base", "finetune")
    further = pretend_run("checkpoints/three", parent={"path": str(tuned), "digest": None})
    found = front(write_card(further))
    assert found["base_model"] == "owner/base"
    RunFolder(Path("checkpoints/two")).update(pushed={"repo": "me/two"})
    assert front(write_card(further))["base_model"] == "me/two"
    text = write_card(further)
    assert "| sft | `three` | `two` |" in text


def test_datasets_are_named_only_if_they_are_on_the_hub(in_tmp_path):
    first = [{"path": "owner/texts", "fingerprint": "1" * 64, "hub": True}, {"path": "b.txt", "fingerprint": "2" * 64}]
    parent = pretend_run("checkpoints/one", data=first)
    data = [{"path": "data/local", "fingerprint": "3" * 64}, {"path": "gsm8k", "fingerprint": "4" * 64, "hub": True}]
    model = pretend_run("checkpoints/two", data=data, parent={"path": str(parent), "digest": None})
    assert front(write_card(model))["datasets"] == ["owner/texts", "gsm8k"]


def test_a_card_lists_the_evaluations_of_exactly_these_weights(pretrained):
    row = {"by": "eval", "data": [{"path": "/srv/texts/held.txt", "fingerprint": "0" * 64}]}
    row |= {"results": {"eval_loss": 1.25, "tokens_per_second": 9.5}}
    keep_evaluation(pretrained.model_path, row)
    other = row | {"results": {"eval_loss": 7.75}}
    keep_evaluation(pretrained.path / "steps" / "checkpoint-10", other)
    text = write_card(pretrained.model_path)
    assert "| `held.txt` | loss on text | 1.2500 | nats per token" in text
    assert "7.75" not in text
    assert "tokens/s" not in text
    assert "7.75" in write_card(pretrained.path / "steps" / "checkpoint-10")


def test_a_checkpoint_within_a_run_has_the_numbers_of_its_step(pretrained):
    step = pretrained.path / "steps" / "checkpoint-10"
    loss = {row["step"]: row["eval_loss"] for row in pretrained.metrics() if "eval_loss" in row}
    assert loss[10] != loss[20]
    text = write_card(step)
    assert "checkpoint of step 10" in text
    assert f"| validation loss | {loss[10]:.4f} |" in text
    assert f"| validation loss | {loss[20]:.4f}" not in text
    write_base("base")
    pretrained.update(parent={"path": "base", "digest": None})
    text = write_card(step)
    assert f"validation loss {loss[10]:.4f}" in text, "in the lineage"
    assert f"{loss[20]:.4f}" not in text


def test_the_card_of_an_export_has_the_record_of_the_run_and_the_verification(pretrained, tmp_path):
    exported = Path(write_base(str(tmp_path / "exported")))
    text = write_card(exported, source=pretrained.model_path, proof=PROOF, repo="me/tiny-model")
    assert front(text)["tags"] == ["llm-lab", "pretrain"]
    assert "# tiny-model" in text
    assert 'from_pretrained("me/tiny-model")' in text
    assert "**verified**" in text
    assert "1.2e-06" in text
    assert "99.8 % of 512" in text
    assert "8 of 9 texts tokenized identically" in text
    assert "| llama.cpp | not verified |  | llama-cpp-python is not installed |" in text
    assert pretrained.facts()["data"][0]["fingerprint"][:12] in text


def test_the_card_of_an_external_model_claims_nothing_about_its_training(in_tmp_path):
    folder = Path(write_base("made"))
    text = write_card(folder, source="owner/model", proof=PROOF)
    assert front(text)["base_model"] == "owner/model"
    assert "base_model_relation" not in front(text)
    for claim in ("## Data", "## Training", "pretrained from scratch", "| validation loss", "made with LLM Lab"):
        assert claim not in text
    native, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    write_gguf(native, tokenizer, folder / "model-f16.gguf", weights="f16", name="made")
    (folder / "model.safetensors").unlink()
    text = write_card(folder, source="owner/model", repo="me/model-gguf")
    assert front(text)["base_model_relation"] == "quantized"
    assert front(text)["library_name"] == "gguf"
    assert "llama-cli -hf me/model-gguf --hf-file model-f16.gguf" in text
    assert "gguf_file=" not in text
    text = write_card(folder, source="owner/model", proof=PROOF)
    assert "llama-cli -m model-f16.gguf" in text
    assert 'from_pretrained(".", gguf_file="model-f16.gguf")' in text


@pytest.mark.usefixtures("quick_verification")
def test_the_card_of_a_gguf_file_describes_the_file(in_tmp_path):
    runner.run(post_recipe("sft", **{"lora": {"r": 2}, "model": {"checkpoint": write_base("base")}}))
    export = {"stage": "export", "name": "file", "device": "cpu", "export": {"to": "gguf"}}
    runner.run(export | {"model": {"checkpoint": "checkpoints/sft"}})
    text = Path("checkpoints/file/gguf/README.md").read_text()
    # Its adapter is merged, and its chat template is only in the file.
    whole = sum(p.numel() for p in load_model("checkpoints/sft/model", merge=True).parameters())
    assert f"| parameters | {count(whole)} ({whole:,}) |" in text
    assert " -cnv\n" in text
    assert "create_chat_completion" in text


def test_a_card_is_written_without_any_heavy_library():
    program = "import sys, llm_lab.runs.card; print([n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
