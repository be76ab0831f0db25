"""A GGUF file works like any other model: the same logits, tokens and template, for every command and stage."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.listeners import Handlers
from support.post_runs import post_recipe, weights_of, write_rows
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.gguf_header import read_gguf_header
from llm_lab.estimate.parameters import read_config_json, shape_at
from llm_lab.export.gguf_file import write_gguf
from llm_lab.hf.adapter import weights_digest
from llm_lab.hf.configs import read_config
from llm_lab.hf.conversations import encode_prompt
from llm_lab.hf.load import load_model
from llm_lab.hf.save import save_model, set_special_tokens, to_native
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.rewards.classifier import load_classifier
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
IDS = torch.arange(7, 71).view(2, 32)


def byte_tokenizer():
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_file(path: str, weights: str = "f32", **parts):
    """Write a tiny Llama as a GGUF file and as a Hugging Face folder of the same name; return the model."""
    tokenizer = byte_tokenizer()
    model = tiny_model(parts.pop("position_embedding", "rope"), vocab_size=len(tokenizer), **parts)
    set_special_tokens(model, tokenizer)
    save_model(model, Path(path).with_suffix(""), tokenizer)
    native = AutoModelForCausalLM.from_pretrained(Path(path).with_suffix(""))
    write_gguf(native, tokenizer, Path(path), weights=weights, name="tiny")
    return native.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def file(in_tmp_path):
    write_file("tiny.gguf")
    return "tiny.gguf"


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ("f32", {}),
        ("f16", {"tie_word_embeddings": False}),
        ("q8_0", {"hidden_size": 64, "intermediate_size": 128}),
        ("f32", {"position_embedding": "yarn"}),
    ],
)
def test_the_model_in_a_gguf_file_gives_the_same_logits_as_before(weights, parts, in_tmp_path, capfd):
    original = write_file("tiny.gguf", weights, **parts)
    model = load_model("tiny.gguf")
    assert "de-quantizing" not in capfd.readouterr().err, "the library's progress bar would be in the live view"
    expected = logits(original)
    tolerance = {"f32": 1e-5, "f16": 2e-3, "q8_0": 0.2}[weights] * expected.abs().max()
    assert (logits(model) - expected).abs().max() < tolerance
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    shape = shape_at("tiny.gguf")
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in original.parameters())
    config = read_config_json("tiny.gguf")
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "tie_word_embeddings"):
        assert config[key] == getattr(original.config, key), key


def test_the_rope_scaling_of_llama_3_is_restored(in_tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, rope_parameters=rope)).eval()
    set_special_tokens(model, tokenizer)
    write_gguf(model, tokenizer, Path("three.gguf"), weights="f32", name="three")
    loaded = load_model("three.gguf")
    assert loaded.config.rope_parameters["factor"] == pytest.approx(32.0)
    at = torch.arange(9000, 9032)[None].expand(2, -1)
    with torch.no_grad():
        difference = loaded(IDS, position_ids=at).logits - model(IDS, position_ids=at).logits
    assert difference.abs().max() < 1e-4


def test_the_tokenizer_and_chat_template_of_a_gguf_file_are_used(file):
    expected = byte_tokenizer()
    Path("tokenizer.json").write_text("{}")  # of another model, next to the file
    Path("tokenizer_config.json").write_text(json.dumps({"chat_template": "wrong"}))
    tokenizer = load_tokenizer(file)
    assert tokenizer.chat_template == TEMPLATE
    asked = [{"role": "user", "content": "Grüße, 12!"}]
    assert encode_prompt(tokenizer, asked) == encode_prompt(expected, asked)
    assert tokenizer("a b")["input_ids"] == expected("a b")["input_ids"]


def test_a_gguf_file_can_be_fine_tuned_merged_shown_and_measured_and_its_changes_are_noticed(file, capsys):
    class Notices(Handlers):
        lines = ()

        def notice(self, text):
            self.lines = (*self.lines, text)

    notices = Notices()
    raw = post_recipe("sft", model={"checkpoint": file}, lora={"r": 2}, **{"train.max_steps": 2})
    facts = run(raw, listener=notices)
    assert "tiny.gguf is a GGUF file: its weights are unpacked" in " ".join(notices.lines)
    assert facts["parent"] == {"path": file, "digest": weights_digest(file), "settings": None}
    tuned = load_model("checkpoints/sft/model")
    saved, text = load_tokenizer("checkpoints/sft/model"), "Grüße,  12!\n a"
    assert saved.chat_template == TEMPLATE
    assert saved(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]

    assert main(["merge", "checkpoints/sft", "--out", "merged"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert (logits(merged) - logits(tuned)).abs().max() < 1e-4
    assert "quantization_config" not in json.loads(Path("merged/config.json").read_text())
    assert load_file("merged/model.safetensors")

    Path("text.txt").write_text("Some words. " * 40)
    for command, shown in (
        (["show", file], r"GGUF file .*architecture +Llama .*chat template +in the file"),
        (["show", "checkpoints/sft"], r"tiny.gguf, not made by LLM Lab"),
        (["chat", file, "--prompt", "Hi", "--max-new-tokens", "3"], ""),
        (["eval", file, "--data", "text.txt", "--device", "cpu", "eval.speed_tokens=0"], r"perplexity"),
    ):
        assert main(command) == 0, capsys.readouterr().err
        assert re.search(shown, " ".join(capsys.readouterr().out.split()))
    assert "tiny.gguf" in Path("evaluations.jsonl").read_text()

    write_file(file, hidden_size=48)
    with pytest.raises(UserError, match=r"model.checkpoint = tiny.gguf: this file has changed since the run"):
        run(raw, resume=True)
    with pytest.raises(UserError, match="are not the ones it was trained on"):
        load_model("checkpoints/sft/model")


def test_all_weights_of_a_gguf_file_can_be_trained_and_it_can_become_a_reward_model(file):
    facts = run(post_recipe("sft", model={"checkpoint": file}, **{"train.max_steps": 1}))
    model = load_model(f"{facts['path']}/model")
    assert model.config.model_type in ("llama", "llm_lab")
    assert load_classifier(file, new_head=True).config.num_labels == 1


def test_the_export_of_a_run_is_found_by_its_name_and_several_files_are_not_guessed_between(file, capsys):
    export = Path("checkpoints/out/gguf")
    export.mkdir(parents=True)
    shutil.copyfile(file, export / "tiny-f32.gguf")
    Path("checkpoints/out/run.json").write_text(json.dumps({"stage": "export", "status": "done"}))
    assert main(["chat", "checkpoints/out", "--prompt", "Hi", "--max-new-tokens", "2"]) == 0
    shutil.copyfile(file, export / "tiny-f16.gguf")
    assert main(["chat", "checkpoints/out", "--prompt", "Hi"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "it holds several GGUF files" in error
    assert "tiny-f16.gguf" in error


def write_with(path: str, change) -> None:
    data = Path("tiny.gguf").read_bytes()
    Path(path).write_bytes(change(data))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda data: data.replace(b"llama", b"rwkv7"),
            "can't read GGUF files of the architecture rwkv7.*Allowed: .*llama",
        ),
        (lambda data: data[:300], "not a GGUF file of version 2 or 3, or it is not complete"),
        (lambda data: b"{}", "not a GGUF file of version 2 or 3"),
        (lambda data: data[: len(data) // 2], "can't be loaded|not complete"),
        (lambda data: data.replace(b"GGUF\x03", b"GGUF\x09", 1), "not a GGUF file of version 2 or 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(file, change, why, capsys):
    write_with("other.gguf", change)
    for attempt in (lambda: load_model("other.gguf"), lambda: read_config("other.gguf")):
        if why.startswith("can't be") and attempt.__code__.co_names[0] == "read_config":
            continue
        with pytest.raises(UserError, match=why):
            attempt()
    assert main(["chat", "other.gguf", "--prompt", "a"]) == 2
    write_rows("rows.jsonl", [{"prompt": "a", "completion": "b"}])
    assert main(["show", "other.gguf"]) in (0, 2)
    assert "Internal error" not in capsys.readouterr().err


def test_a_damaged_header_only_makes_the_file_unreadable(file):
    data = bytearray(Path(file).read_bytes()[:4000])
    for position in range(8, 400, 3):
        broken = bytearray(data)
        broken[position : position + 8] = b"\xff" * 8
        Path("broken.gguf").write_bytes(broken)
        found = read_gguf_header("broken.gguf")
        assert found is None or isinstance(found, dict)
    assert to_native(tiny_model("rope")) is not None


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "grpo", "ppo", "reward"])
@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["all weights", "adapter"])
def test_a_gguf_file_is_the_start_of_every_stage_and_its_reference(stage, lora, file):
    """It learns like a run from a folder with the same weights, and is bit-identical after a resume."""
    losses = {}
    for start in (file, "tiny"):
        name = f"{stage}-{Path(start).suffix[1:] or 'folder'}"
        changes = {"model": {"checkpoint": start}, "name": name, "train.save_total_limit": 5}
        raw = post_recipe(stage, **changes, **({"lora": lora} if lora else {}))
        facts = run(raw)
        path = Path(facts["path"])
        losses[start] = [row.get("loss") for row in RunFolder(path).metrics() if "loss" in row]
        final = weights_of(str(path))
        newest = max((path / "steps").glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
        shutil.rmtree(newest)
        RunFolder(path).update(status="stopped")
        assert run(raw, resume=True)["status"] == "done"
        again = weights_of(str(path))
        assert final.keys() == again.keys()
        assert all(torch.equal(final[key], again[key]) for key in final)
    if stage != "reward":  # its new head is random
        assert losses[file] == pytest.approx(losses["tiny"], abs=1e-5)
        out = f"{stage}-out"
        assert main(["export", f"checkpoints/{stage}-gguf", "--to", "gguf", "--out", out]) == 0
        assert list(Path(out).glob("*.gguf"))
