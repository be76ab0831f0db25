"""What a combination of parts is said to load in is what really happens: all 120 of them, in a stranger's process."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support.llama_cpp import HAS_LLAMA_CPP, NO_LLAMA_CPP
from support.tiny_models import COMBINATIONS, KEY_VALUE_HEADS, YARN, tiny_model, tokens

from llm_lab.errors import UserError
from llm_lab.estimate.compatibility import LLAMA_CPP, TRANSFORMERS, Loads, what_loads
from llm_lab.export.gguf_file import write_gguf
from llm_lab.export.probe import Probe, ask
from llm_lab.export.proof import ask_others
from llm_lab.hf.save import save_model, set_special_tokens, to_native
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
CLASSES |= {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def questions(seed: int = 1) -> Probe:
    rows = tuple(map(tuple, tokens(2, 24, seed=seed).tolist()))
    return Probe(rows, (rows[0][:5],), ("Hello, 12 worlds!\n",), (), 3)


def model_of(**changes):
    """A model with a byte tokenizer, whose weights are large enough for any mistake to show."""
    tokenizer = make_byte_tokenizer()
    model = tiny_model(changes.pop("position_embedding", "rope"), vocab_size=len(tokenizer), **changes)
    set_special_tokens(model, tokenizer)
    return model, tokenizer


def differences(ours, theirs) -> float:
    """The largest difference of logits, relative to the largest logit."""
    assert ours.logits.shape == theirs["logits"].shape
    return float(np.abs(ours.logits - theirs["logits"]).max() / np.abs(ours.logits).max())


def write(model, tokenizer, folder: Path) -> Loads:
    """Write a folder, and the GGUF file in it where that is said to be possible; returns what was said."""
    save_model(model, folder, tokenizer)
    loads = what_loads(model.config.to_dict())
    if loads.gguf:
        write_gguf(to_native(model) or model, tokenizer, folder / "model.gguf", weights="f32", name="tiny")
    else:
        with pytest.raises(UserError) as caught:
            write_gguf(to_native(model) or model, tokenizer, folder / "model.gguf", weights="f32", name="tiny")
        assert loads.gguf_reason in str(caught.value)
        assert not (folder / "model.gguf").exists()
    return loads


def jobs_of(folder: Path, loads: Loads) -> dict[str, dict]:
    """Every way to load what was written, the ways that are said to fail among them."""
    job = {"loader": TRANSFORMERS, "folder": str(folder), "file": None}
    found = {"plain": job, "trusted": {**job, "trust_remote_code": True}}
    if loads.gguf:
        found[TRANSFORMERS] = {**job, "file": "model.gguf"}
        if HAS_LLAMA_CPP:
            found[LLAMA_CPP] = {**job, "file": "model.gguf", "loader": LLAMA_CPP}
    return found


def require_what_was_said(name, ours, loads: Loads, answers: dict[str, dict]) -> None:
    plain = answers["plain"]
    if loads.architecture:
        assert plain["loaded_as"] == CLASSES[loads.architecture], name
        assert plain["module"].startswith("transformers.models."), name
        assert differences(ours, plain) < 1e-5, name
    else:
        assert "trust_remote_code" in plain["error"], name
        assert answers["trusted"]["loaded_as"] == "LabForCausalLM", name
        assert answers["trusted"]["module"].startswith("transformers_modules."), name
    assert differences(ours, answers["trusted"]) < 1e-5, name
    assert [list(row) for row in ours.written] == answers["trusted"]["written"], name
    for program, limit in ((TRANSFORMERS, 1e-5), (LLAMA_CPP, 1e-4)):
        if program not in answers:
            continue
        same = "error" not in answers[program] and differences(ours, answers[program]) < limit
        assert same == (program in loads.gguf_readers), (name, program, answers[program].get("error"))


def require_truth(models: dict, tmp_path: Path) -> dict[str, Loads]:
    """Write models, load them all in one new process, and hold what happens against what was said."""
    said, ours, jobs, probe = {}, {}, {}, questions()
    for name, (model, tokenizer) in models.items():
        folder = tmp_path / name
        said[name] = write(model, tokenizer, folder)
        ours[name] = ask(model, tokenizer, probe)
        jobs |= {(name, way): job for way, job in jobs_of(folder, said[name]).items()}
    answers = dict(zip(jobs, ask_others([(job, probe) for job in jobs.values()]), strict=True))
    for name in models:
        require_what_was_said(name, ours[name], said[name], {w: a for (n, w), a in answers.items() if n == name})
    return said


def test_every_combination_of_parts_loads_in_what_is_said_and_in_nothing_else(tmp_path):
    models = {
        "-".join(parts): model_of(
            position_embedding=parts[0],
            norm=parts[1],
            num_key_value_heads=KEY_VALUE_HEADS[parts[2]],
            activation=parts[3],
        )
        for parts in COMBINATIONS
    }
    said = require_truth(models, tmp_path)
    assert len(said) == 120
    native = {name for name, loads in said.items() if loads.architecture}
    assert native == {f"{p}-rmsnorm-{a}-swiglu" for p in ("rope", "yarn") for a in KEY_VALUE_HEADS}
    assert {name for name, loads in said.items() if loads.gguf} == native


@pytest.mark.parametrize("parts", [*itertools.product(POSITIONS, NORMS, ATTENTIONS, ACTIVATIONS)], ids="-".join)
def test_a_recipe_is_told_what_its_model_is_told(parts):
    names = ("position_embedding", "norm", "attention", "activation")
    recipe = what_loads(dict(zip(names, parts, strict=True)))
    model = tiny_model(parts[0], norm=parts[1], activation=parts[3], num_key_value_heads=KEY_VALUE_HEADS[parts[2]])
    built = what_loads(model.config.to_dict())
    assert recipe == built


VARIANTS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "yarn, tied": {"position_embedding": "yarn", "tie_word_embeddings": True},
    "attention biases": {"attention_bias": True},
    "biases in the feed-forward": {"mlp_bias": True},
    "yarn and biases": {"position_embedding": "yarn", "attention_bias": True, "mlp_bias": True},
    "QK-norm": {"qk_norm": True, "num_key_value_heads": 2},
    "QK-norm, heads of 128": {"qk_norm": True, "head_dim": 128, "num_key_value_heads": 2},
    "QK-norm, yarn": {"qk_norm": True, "position_embedding": "yarn"},
    "QK-norm and biases": {"qk_norm": True, "attention_bias": True},
    "QK-norm and a window": {"qk_norm": True, "sliding_window": 5},
    "QK-norm and biases in the feed-forward": {"qk_norm": True, "mlp_bias": True},
    "a window": {"sliding_window": 5},
    "a window as long as the context": {"sliding_window": 64},
    "a window and biases": {"sliding_window": 5, "attention_bias": True},
    "heads that are wider than the model": {"head_dim": 32},
    "another base and epsilon": {"rope_parameters": {"rope_theta": 500.0}, "norm_eps": 0.05},
    "yarn, another base": {"position_embedding": "yarn", "rope_parameters": {**YARN, "rope_theta": 500.0}},
    "yarn, settings of its own": {"position_embedding": "yarn", "rope_parameters": {**YARN, "beta_fast": 16}},
    "yarn, a factor of its own": {"position_embedding": "yarn", "rope_parameters": {**YARN, "attention_factor": 0.5}},
}


def test_every_variant_of_the_native_parts_loads_in_what_is_said(tmp_path):
    said = require_truth({name: model_of(**changes) for name, changes in VARIANTS.items()}, tmp_path)
    assert {name for name, loads in said.items() if loads.architecture is None} == {
        "QK-norm and biases in the feed-forward",
        "a window and biases",
    }
    assert {name for name, loads in said.items() if not loads.gguf} == {
        "QK-norm and biases in the feed-forward",
        "QK-norm and biases",
        "QK-norm and a window",
        "a window",
        "a window and biases",
        "yarn, settings of its own",
        "yarn, a factor of its own",
    }
    assert all(loads.gguf_reason and loads.native_reason for loads in said.values())


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason=NO_LLAMA_CPP)
def test_llama_cpp_reads_every_file_that_is_said_to_be_one_of_its(tmp_path):
    """What require_truth shows of llama.cpp above stands only where llama.cpp was there: this says so."""
    model, tokenizer = model_of(position_embedding="yarn", attention_bias=True)
    loads, probe = write(model, tokenizer, tmp_path), questions()
    (answer,) = ask_others([(jobs_of(tmp_path, loads)[LLAMA_CPP], probe)])
    assert differences(ask(model, tokenizer, probe), answer) < 1e-4


def foreign(kind: str, extra_rows: int = 0, **changes):
    """A model of Transformers' own class, its weights and biases large, with a byte tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": len(tokenizer) + extra_rows}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    set_special_tokens(model, tokenizer)
    return model, tokenizer


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 16}
OTHERS = {
    "llama": ("llama", {}),
    "llama, more rows than tokens": ("llama", {"extra_rows": 7}),
    "llama 3": ("llama", {"rope_parameters": LLAMA_3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, a window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, a window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "qwen3, layers with and without a window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
}


def test_models_of_others_load_in_what_is_said(tmp_path):
    said = require_truth({name: foreign(kind, **changes) for name, (kind, changes) in OTHERS.items()}, tmp_path)
    assert {name for name, loads in said.items() if not loads.gguf} == {name for name in OTHERS if "window" in name}
    assert all(loads.architecture == OTHERS[name][0] for name, loads in said.items())
    assert said["llama 3"].gguf_readers == (LLAMA_CPP,)
    assert said["qwen2"].gguf_readers == (LLAMA_CPP, TRANSFORMERS)


LLAMA = {"model_type": "llama", "hidden_act": "silu", "max_position_embeddings": 2048}
FOREIGN = [
    ({**LLAMA}, "llama", "llama", "llama.cpp, Ollama"),
    ({**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, "llama", None, "kind linear"),
    ({**LLAMA, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama", "llama", "Llama 3's stretching"),
    ({**LLAMA, "hidden_act": "gelu"}, "llama", None, "no gelu"),
    ({"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 9999}, "mistral", "llama", "Llama"),
    ({"model_type": "mistral", "max_position_embeddings": 9999}, "mistral", None, "4,096 tokens are fewer"),
    ({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": False}, "qwen3", "qwen3", "Qwen3"),
    ({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": True}, "qwen3", None, "no sliding window"),
    ({"model_type": "gpt2"}, "gpt2", None, "this is gpt2"),
    ({"model_type": "qwen2_moe"}, "qwen2_moe", None, "this is qwen2_moe"),
    ({"model_type": "mixtral"}, "mixtral", None, "this is mixtral"),
    ({"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "odd.Odd"}}, None, None, "no architecture"),
]


@pytest.mark.parametrize(("config", "architecture", "gguf", "words"), FOREIGN)
def test_a_config_of_others_is_judged_by_what_it_says(config, architecture, gguf, words):
    loads = what_loads(config)
    assert (loads.architecture, loads.gguf) == (architecture, gguf)
    assert words in loads.gguf_reason


def test_a_weight_that_was_changed_after_writing_does_not_pass_for_the_model(tmp_path):
    model, tokenizer = model_of()
    save_model(model, tmp_path, tokenizer)
    probe = questions()
    ours = ask(model, tokenizer, probe)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] += 0.5
    save_model(model, tmp_path, tokenizer)
    (theirs,) = ask_others([({"loader": TRANSFORMERS, "folder": str(tmp_path), "file": None}, probe)])
    assert differences(ours, theirs) > 1e-3
