"""Sources of the model and the tokenizer: parts, a config, a checkpoint, the stage before."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.pretrain_runs import losses, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, MistralConfig, MixtralConfig

from llm_lab.errors import UserError
from llm_lab.hf.tokenizers import make_byte_tokenizer, train_bpe
from llm_lab.job import check, read_job
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder, find_model

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "vocab_size": 257}


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def pipeline(**changes) -> dict:
    second = tiny_recipe(name="second", **changes)
    del second["model"]
    return {"name": "both", "device": "cpu", "stages": [tiny_recipe(name="first"), second]}


def first_loss(facts: dict) -> float:
    return dict(losses(facts)[0])["loss"]


def test_a_bpe_is_trained_once_and_saved_with_the_model():
    facts = run(tiny_recipe(tokenizer={"bpe": 300}))
    tokenizer = AutoTokenizer.from_pretrained("checkpoints/tiny/model")
    assert 257 < len(tokenizer) <= 300
    model = AutoModelForCausalLM.from_pretrained("checkpoints/tiny/model")
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    again = run(Path(facts["path"]) / "recipe.yaml")
    assert losses(again) == losses(facts)


def test_a_bpe_is_trained_on_the_training_split_only():
    Path("text.txt").write_text("the old tree. " * 400 + "zyxwvu zyxwvu " * 40)
    run(tiny_recipe(tokenizer={"bpe": 300}))
    pieces = AutoTokenizer.from_pretrained("checkpoints/tiny/model").get_vocab()
    assert not [piece for piece in pieces if "zy" in piece]


def test_a_tokenizer_from_a_folder_is_used_unchanged():
    train_bpe([Path("text.txt").read_text()], 280).save_pretrained("own")
    run(tiny_recipe(tokenizer="own"))
    assert len(AutoTokenizer.from_pretrained("checkpoints/tiny/model")) == len(AutoTokenizer.from_pretrained("own"))


CONFIGS = {
    "ours": (LabConfig(**SMALL, position_embedding="alibi", norm="layernorm"), "LabForCausalLM"),
    "llama": (LlamaConfig(**SMALL, intermediate_size=64), "LlamaForCausalLM"),
    "mistral": (
        MistralConfig(**SMALL, num_key_value_heads=1, intermediate_size=64, sliding_window=8),
        "MistralForCausalLM",
    ),
    "gpt2": (GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=999, n_positions=16), "GPT2LMHeadModel"),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_hugging_face_config_is_pretrained_from_scratch(kind, optimizer):
    config, architecture = CONFIGS[kind]
    config.save_pretrained("shape")
    model = {"config": "shape/config.json"} if kind == "gpt2" else {"config": "shape"}
    facts = run(tiny_recipe(model=model, optimizer={"name": optimizer}))
    assert first_loss(facts) == pytest.approx(math.log(257), abs=0.3)
    assert facts["results"]["loss"] < first_loss(facts) - 0.3
    built = AutoModelForCausalLM.from_pretrained("checkpoints/tiny/model", trust_remote_code=kind == "ours")
    assert type(built).__name__ == architecture
    assert built.config.vocab_size == 257


def test_the_loss_that_balances_experts_is_trained_but_not_measured():
    sizes = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(**sizes, router_aux_loss_coef=0.5, max_position_embeddings=64)
    config.save_pretrained("config")
    changes = {"optimizer.learning_rate": 1e-12, "train.logging_steps": 1}
    rows = losses(run(tiny_recipe(model={"config": "config"}, tokenizer="bytes", **changes)))
    trained = [row["loss"] for row in map(dict, rows) if "loss" in row]
    measured = [row["eval_loss"] for row in map(dict, rows) if "eval_loss" in row]
    # With equal use of all experts, the balancing loss is num_experts_per_tok = 2.
    assert trained[-1] - measured[-1] == pytest.approx(0.5 * 2, rel=0.15)
    assert measured[-1] == pytest.approx(math.log(257), rel=0.05)


def test_rows_longer_than_the_context_of_a_config_are_refused():
    CONFIGS["gpt2"][0].save_pretrained("shape")
    with pytest.raises(UserError, match=r"train\.max_length = 17: sequences are longer.*16 tokens"):
        run(tiny_recipe(model={"config": "shape"}, **{"train.max_length": 17}))
    assert (
        check(tiny_recipe(model={"config": "shape"}, **{"train.max_length": None}))
        .stages[0]
        .values["train"]["max_length"]
        == 16
    )


def test_pretraining_continues_from_the_weights_of_a_checkpoint():
    first = run(tiny_recipe())
    raw = tiny_recipe(name="more", model={"checkpoint": "checkpoints/tiny"})
    second = run(raw)
    assert first_loss(second) == pytest.approx(first["results"]["eval_loss"], abs=0.3)
    assert second["results"]["eval_loss"] < first["results"]["eval_loss"]
    assert second["parent"]["path"].endswith("checkpoints/tiny/model")
    assert len(second["parent"]["digest"]) == 64
    short = run({**raw, "model": "checkpoints/tiny/steps/checkpoint-10", "name": "short"})
    assert first_loss(short) > first_loss(second)


def test_pretraining_continues_from_a_custom_checkpoint():
    run(tiny_recipe(**{"model.norm": "layernorm", "model.position_embedding": "sinusoidal", "model.dropout": 0.1}))
    second = run(tiny_recipe(name="more", model={"checkpoint": "checkpoints/tiny"}))
    assert first_loss(second) < 4
    config = AutoModelForCausalLM.from_pretrained("checkpoints/more/model", trust_remote_code=True).config
    assert (config.norm, config.hidden_dropout) == ("layernorm", 0.1)


def test_a_missing_model_is_reported():
    with pytest.raises(UserError, match="no such file or folder"):
        run(tiny_recipe(model={"checkpoint": "./nowhere"}))
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        run(tiny_recipe(model={"checkpoint": "empty"}))


def test_each_stage_of_a_pipeline_starts_from_the_one_before():
    facts = run(pipeline())
    assert facts["status"] == "done"
    outer = RunFolder(Path(facts["path"]))
    first, second = (stage.facts() for stage in outer.stages())
    assert first["status"] == second["status"] == "done"
    assert facts["results"] == second["results"]
    rows = outer.stages()[1].metrics()
    assert rows[0]["loss"] == pytest.approx(first["results"]["eval_loss"], abs=0.3)
    assert find_model("both") == outer.path / "second" / "model"
    again = run(pipeline())
    assert again["path"] == "checkpoints/both-2"
    assert RunFolder(Path("checkpoints/both-2/second")).facts()["parent"]["path"] == "checkpoints/both-2/first/model"
    replayed = run("checkpoints/both-2")
    assert replayed["results"]["eval_loss"] == facts["results"]["eval_loss"]


def test_a_stage_is_planned_with_the_shape_of_the_stage_before():
    raw = pipeline(**{"train.max_length": None, "train.max_steps": None, "scheduler": {}})
    before = check(raw).stages[1]
    assert before.values["train"]["max_length"] == 32
    assert before.estimate.parameters == check(raw).stages[0].estimate.parameters
    run(raw, ["stages.1.train.max_steps=20"])
    after = check(raw).stages[1]
    assert after.values == before.values


def test_a_pipeline_resumes_at_the_interrupted_stage(monkeypatch):
    whole = run(pipeline())
    shutil.copytree("checkpoints/both", "checkpoints/whole")
    outer = RunFolder(Path("checkpoints/both"))
    for name in ("model", "steps/checkpoint-20"):
        shutil.rmtree(outer.path / "second" / name)
    RunFolder(outer.path / "second").update(status="stopped")
    outer.update(status="stopped")
    before = weights({"path": outer.path / "first"})
    resumed = run(pipeline(), resume=True)
    assert resumed["results"]["eval_loss"] == whole["results"]["eval_loss"]
    assert resumed["status"] == "done"
    for stage in ("first", "second"):
        assert losses({"path": outer.path / stage}) == losses({"path": Path("checkpoints/whole") / stage})
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights({"path": outer.path / "first"}).items())
    assert run(pipeline(), resume=True)["results"] == resumed["results"]
    with pytest.raises(UserError, match=r"stages\.1\.train\.max_steps = 30"):
        run(pipeline(**{"train.max_steps": 30}), resume=True)


def test_the_failing_stage_of_a_pipeline_is_reported():
    Path("short.txt").write_text("too short")
    with pytest.raises(UserError, match="training split has"):
        run(pipeline(data=[{"path": "short.txt"}]))
    outer = RunFolder(Path("checkpoints/both"))
    assert outer.facts()["status"] == "failed"
    assert "training split has" in outer.facts()["error"]
    assert [stage.path.name for stage in outer.stages() if stage.facts()] == ["first"]


def test_problems_of_a_pipeline_name_their_stage():
    raw = pipeline(**{"train.max_step": 3})
    raw["stages"][0]["optimizer"]["learning_rate"] = -1
    raw["stages"].append({"stage": "pretain"})
    _, problems = read_job(raw)
    assert [problem.key for problem in problems] == [
        "stages.0.optimizer.learning_rate",
        "stages.1.train.max_step",
        "stages.2.stage",
    ]
    for broken, words in (({"stages": []}, "at least one entry"), ({"stages": [{}], "sede": 1}, "Did you mean seed?")):
        _, problems = read_job(broken)
        assert words in " ".join(map(str, problems))


def test_the_byte_tokenizer_is_the_same_in_all_runs():
    run(tiny_recipe(tokenizer="bytes"))
    assert AutoTokenizer.from_pretrained("checkpoints/tiny/model").get_vocab() == make_byte_tokenizer().get_vocab()


def test_a_model_design_includes_its_tokenizer(in_tmp_path):
    from llm_lab.hf.load import write_design
    from llm_lab.recipe.resolve import resolve

    write_text("text.txt")
    design = resolve(tiny_recipe(tokenizer={"bpe": 280}))
    folder = write_design(Path("configs/models/mine"), design.values)
    raw = tiny_recipe(model={"config": str(folder)})
    resolved = resolve(raw)
    assert resolved.values["tokenizer"] == {"bpe": 280}
    assert resolved.origins["tokenizer.bpe"].reason == "from the design"
    config = json.loads((Path(run(raw)["path"]) / "model" / "config.json").read_text())
    assert config["vocab_size"] == 280
    assert "lab_tokenizer" not in config


def test_the_measured_mix_is_in_run_json_and_the_report(in_tmp_path):
    write_text("text.txt")
    write_text("other.txt", 40, seed=1)
    raw = tiny_recipe(data=[{"path": "text.txt", "weight": 3.0}, {"path": "other.txt", "weight": 1.0}])
    facts = run(raw)
    assert [item["share"] for item in facts["mix"]] == [0.75, 0.25]
    assert facts["mix"][1]["epochs"] > facts["mix"][0]["epochs"]
    assert "25.0 % of the tokens trained on" in (Path(facts["path"]) / "report.md").read_text()
