"""Every program that is claimed to load an exported model loads it, with equal logits, without LLM Lab."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support.llama_cpp import HAS_LLAMA_CPP, NO_LLAMA_CPP
from support.sampling import covering
from support.tiny_models import FACTORS, KEY_VALUE_HEADS, YARN, every_combination, named, tiny_model, tokens

from llm_lab.errors import UserError
from llm_lab.estimate.compatibility import LLAMA_CPP, TRANSFORMERS, Loads, describe_architecture, what_loads
from llm_lab.export.gguf_file import write_gguf
from llm_lab.export.verify import Probe, ask, ask_others
from llm_lab.hf.save import save_model, set_special_tokens, to_native
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS

pytestmark = pytest.mark.usefixtures("quick_verification")
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
CLASSES |= {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel"}
CLASSES |= {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
GPT2 = {"position": "learned", "norm": "layernorm", "num_key_value_heads": 4, "activation": "gelu"}


def make_probe(seed: int = 1) -> Probe:
    rows = tuple(map(tuple, tokens(2, 24, seed=seed).tolist()))
    return Probe(rows, (rows[0][:5],), ("Hello, 12 worlds!\n",), (), 3)


def model_of(**changes):
    """Return a model with weights large enough for any mistake to show, and a byte tokenizer."""
    tokenizer = make_byte_tokenizer()
    changes = {"tie_word_embeddings": changes.get("position_embedding") == "learned"} | changes
    model = tiny_model(changes.pop("position_embedding", "rope"), vocab_size=len(tokenizer), **changes)
    set_special_tokens(model, tokenizer)
    return model, tokenizer


def differences(ours, theirs) -> float:
    """Return the largest difference of logits, relative to the largest logit."""
    assert ours.logits.shape == theirs["logits"].shape
    return float(np.abs(ours.logits - theirs["logits"]).max() / np.abs(ours.logits).max())


def write(model, tokenizer, folder: Path) -> Loads:
    """Write a folder, with a GGUF file if it is claimed to be supported; return the claims."""
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
    """Return every way to load the written files, including those that are claimed to fail."""
    job = {"loader": TRANSFORMERS, "folder": str(folder), "file": None}
    found = {"plain": job, "trusted": {**job, "trust_remote_code": True}}
    if loads.gguf:
        found[TRANSFORMERS] = {**job, "file": "model.gguf"}
        if HAS_LLAMA_CPP:
            found[LLAMA_CPP] = {**job, "file": "model.gguf", "loader": LLAMA_CPP}
    return found


def check_claims_of(name, ours, loads: Loads, answers: dict[str, dict]) -> None:
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
    for program, limit in ((TRANSFORMERS, 1e-5), (LLAMA_CPP, 1e-2 if loads.gguf == "gpt2" else 1e-4)):
        if program not in answers:
            continue
        same = "error" not in answers[program] and differences(ours, answers[program]) < limit
        assert same == (program in loads.gguf_readers), (name, program, answers[program].get("error"))


def check_claims(models: dict, tmp_path: Path) -> dict[str, Loads]:
    """Write models, load all of them in one new process, and check the claims about each."""
    claims, ours, jobs, probe = {}, {}, {}, make_probe()
    for name, (model, tokenizer) in models.items():
        folder = tmp_path / name
        claims[name] = write(model, tokenizer, folder)
        ours[name] = ask(model, tokenizer, probe)
        jobs |= {(name, way): job for way, job in jobs_of(folder, claims[name]).items()}
    answers = dict(zip(jobs, ask_others([(job, probe) for job in jobs.values()]), strict=True))
    for name in models:
        check_claims_of(name, ours[name], claims[name], {w: a for (n, w), a in answers.items() if n == name})
    return claims


def is_native(parts) -> bool:
    gated = parts["activation"] in ("swiglu", "geglu", "reglu")
    return parts == GPT2 or (parts["position"] in ("rope", "yarn") and parts["norm"] == "rmsnorm" and gated)


def check_combinations(combinations, tmp_path: Path) -> None:
    models = {
        named(parts): model_of(
            position_embedding=parts["position"], **{k: v for k, v in parts.items() if k != "position"}
        )
        for parts in combinations
    }
    claims = check_claims(models, tmp_path)
    native = {named(parts) for parts in combinations if is_native(parts)}
    assert {name for name, loads in claims.items() if loads.architecture} == native
    in_gguf = {named(parts) for parts in combinations if is_native(parts) and parts["activation"] in ("swiglu", "gelu")}
    assert {name for name, loads in claims.items() if loads.gguf} == in_gguf


def test_every_part_loads_in_the_claimed_programs_and_in_no_other(tmp_path):
    names = ("position", "norm", "num_key_value_heads", "activation")
    some = [dict(zip(names, row, strict=True)) for row in covering([FACTORS[name] for name in names], 1)]
    native = [parts for parts in every_combination() if is_native(parts) and parts["num_key_value_heads"] != 1]
    check_combinations([*native, *(parts for parts in some if parts not in native)], tmp_path)


@pytest.mark.slow
def test_every_combination_of_parts_loads_in_the_claimed_programs_and_in_no_other(tmp_path):
    check_combinations(every_combination(), tmp_path)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_recipe_and_its_model_have_the_same_claims(position, norm):
    for attention, activation in itertools.product(ATTENTIONS, ACTIVATIONS):
        parts = {"position_embedding": position, "norm": norm, "attention": attention, "activation": activation}
        heads = KEY_VALUE_HEADS[attention]
        model = tiny_model(position, norm=norm, activation=activation, num_key_value_heads=heads)
        tied = {"tie_word_embeddings": model.config.tie_word_embeddings}
        assert what_loads(parts | tied) == what_loads(model.config.to_dict()), parts


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
    "a window that no layer has": {"sliding_window": 5, "layer_types": ["full_attention"] * 2},
    "QK-norm and a window that no layer has": {
        "qk_norm": True,
        "sliding_window": 5,
        "layer_types": ["full_attention"] * 2,
    },
    "heads wider than the model": {"head_dim": 32},
    "other base and epsilon": {"rope_parameters": {"rope_theta": 500.0}, "norm_eps": 0.05},
    "yarn, other base": {"position_embedding": "yarn", "rope_parameters": {**YARN, "rope_theta": 500.0}},
    "yarn, factor 1": {"position_embedding": "yarn", "rope_parameters": {**YARN, "factor": 1.0}},
    "yarn, custom settings": {"position_embedding": "yarn", "rope_parameters": {**YARN, "beta_fast": 16}},
    "yarn, custom factor": {"position_embedding": "yarn", "rope_parameters": {**YARN, "attention_factor": 0.5}},
}


def test_every_variant_of_native_parts_loads_in_the_claimed_programs(tmp_path):
    claims = check_claims({name: model_of(**changes) for name, changes in VARIANTS.items()}, tmp_path)
    assert {name for name, loads in claims.items() if loads.architecture is None} == {
        "QK-norm and biases in the feed-forward",
        "a window and biases",
    }
    assert {name for name, loads in claims.items() if not loads.gguf} == {
        "QK-norm and biases in the feed-forward",
        "QK-norm and biases",
        "QK-norm and a window",
        "a window",
        "a window and biases",
        "yarn, custom settings",
        "yarn, custom factor",
    }
    assert all(loads.gguf_reason and loads.native_reason for loads in claims.values())


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason=NO_LLAMA_CPP)
def test_llama_cpp_loads_the_files_it_is_claimed_to_load(tmp_path):
    """The tests above check llama.cpp only if it is installed; if not, this test is skipped."""
    model, tokenizer = model_of(position_embedding="yarn", attention_bias=True)
    loads, probe = write(model, tokenizer, tmp_path), make_probe()
    (answer,) = ask_others([(jobs_of(tmp_path, loads)[LLAMA_CPP], probe)])
    assert differences(ask(model, tokenizer, probe), answer) < 1e-4


def transformers_model(kind: str, extra_rows: int = 0, **changes):
    """Return a model of a class of transformers, with large weights and biases, and a byte tokenizer."""
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
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
NATIVE_MODELS = {
    "gpt2": ("gpt2", {"max_position_embeddings": 1024}),
    "gpt2, another context": ("gpt2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral, a window": ("mixtral", {"num_local_experts": 4, "sliding_window": 8}),
    "qwen3-moe": ("qwen3_moe", {"num_experts": 4, **EXPERTS, "head_dim": 128}),
    "qwen3-moe, small heads": ("qwen3_moe", {"num_experts": 4, **EXPERTS, "head_dim": 8}),
    "gpt2, exact GELU": ("gpt2", {"activation_function": "gelu", "max_position_embeddings": 1024}),
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


def test_models_of_transformers_load_in_the_claimed_programs(tmp_path):
    claims = check_claims(
        {name: transformers_model(kind, **changes) for name, (kind, changes) in NATIVE_MODELS.items()}, tmp_path
    )
    assert {name for name, loads in claims.items() if not loads.gguf} == {
        name for name in NATIVE_MODELS if "window" in name
    }
    assert all(loads.architecture == NATIVE_MODELS[name][0] for name, loads in claims.items())
    for name in ("llama 3", "gpt2, another context", "gpt2, exact GELU"):
        assert claims[name].gguf_readers == (LLAMA_CPP,), name
    assert claims["qwen2"].gguf_readers == (LLAMA_CPP, TRANSFORMERS)


LLAMA = {"model_type": "llama", "hidden_act": "silu", "max_position_embeddings": 2048}
CONFIGS = [
    ({**LLAMA}, "llama", "llama", "llama.cpp, Ollama"),
    ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}, "llama", None, "RoPE type linear"),
    ({**LLAMA, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama", "llama", "Llama 3's RoPE scaling"),
    ({**LLAMA, "hidden_act": "gelu"}, "llama", None, "no gelu"),
    ({"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 9999}, "mistral", "llama", "Llama"),
    ({"model_type": "mistral", "max_position_embeddings": 9999}, "mistral", None, "4,096 tokens is less"),
    ({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": False}, "qwen3", "qwen3", "Qwen3"),
    ({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": True}, "qwen3", None, "no sliding window"),
    ({"model_type": "gpt2"}, "gpt2", "gpt2", "llama.cpp, Ollama"),
    ({"model_type": "gpt2", "activation_function": "relu"}, "gpt2", None, "no relu"),
    ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "gpt2", None, "scales attention"),
    ({"model_type": "opt"}, "opt", None, "this is opt"),
    ({"model_type": "qwen2_moe"}, "qwen2_moe", None, "this is qwen2_moe"),
    ({"model_type": "mixtral", "max_position_embeddings": 99}, "mixtral", "llama", "ignores experts"),
    ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "qwen3_moe", None, "normalizes"),
    ({"model_type": "qwen3_moe", "mlp_only_layers": [0], "norm_topk_prob": True}, "qwen3_moe", None, "in every layer"),
    ({"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "odd.Odd"}}, None, None, "no GGUF architecture"),
]


@pytest.mark.parametrize(("config", "architecture", "gguf", "words"), CONFIGS)
def test_the_claims_about_a_foreign_config_follow_its_values(config, architecture, gguf, words):
    loads = what_loads(config)
    assert (loads.architecture, loads.gguf) == (architecture, gguf)
    assert words in loads.gguf_reason


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"position_embedding": "learned", **GPT2}], ids=str)
@pytest.mark.parametrize(("pattern", "layers"), [("L", 2), ("LS", 2), ("SL", 2), ("S", 1)])
def test_a_pattern_of_windows_follows_the_layers_that_have_one(changes, pattern, layers):
    parts = {"position_embedding": "rope", "norm": "rmsnorm", "activation": "swiglu", "tie_word_embeddings": True}
    parts |= {"sliding_window": 5, "max_position_embeddings": 64, "num_hidden_layers": layers} | changes
    plain, windowed = parts | {"sliding_window": None}, parts | {"sliding_window_pattern": pattern}
    assert (what_loads(windowed) == what_loads(plain)) == (pattern != "SL")


UNUSUAL = [
    ({"activation": "geglu"}, "hidden_act gelu"),
    ({"qk_norm": True, "attention_bias": True}, "biases in attention"),
    ({"qk_norm": True, "sliding_window": 5, "sliding_window_pattern": "SL"}, "a sliding window in some layers"),
]


@pytest.mark.parametrize(("changes", "unusual"), UNUSUAL)
def test_features_of_a_native_model_that_other_programs_lack_are_reported(changes, unusual):
    parts = {"position_embedding": "rope", "norm": "rmsnorm", "activation": "swiglu", "num_hidden_layers": 2}
    assert "loads in any tool that supports it" in what_loads(parts).native_reason
    assert f"with {unusual}: Transformers loads it; many other programs" in what_loads(parts | changes).native_reason


def test_a_changed_weight_is_detected(tmp_path):
    model, tokenizer = model_of()
    save_model(model, tmp_path, tokenizer)
    probe = make_probe()
    ours = ask(model, tokenizer, probe)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] += 0.5
    save_model(model, tmp_path, tokenizer)
    (theirs,) = ask_others([({"loader": TRANSFORMERS, "folder": str(tmp_path), "file": None}, probe)])
    assert differences(ours, theirs) > 1e-3


def test_a_model_of_parts_is_called_the_same_before_and_after_it_is_saved():
    parts = {"position_embedding": "rope", "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True}
    assert describe_architecture({"model_type": "llm_lab", **parts}) == describe_architecture({"model_type": "qwen3"})
    own = {"model_type": "llm_lab", **parts, "position_embedding": "alibi"}
    assert describe_architecture(own) == "LLM Lab parts: alibi, rmsnorm, swiglu"
