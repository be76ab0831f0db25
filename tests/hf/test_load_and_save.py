"""Saved folders are native if the parts allow it, give the same logits without LLM Lab, and can be trained again."""

import copy
import json

import pytest
import torch
from conftest import tiny_recipe
from safetensors.torch import load_file, save_file
from support.tiny_models import LOAD_WITHOUT_LLM_LAB, combinations, named, recipe_keys, tiny_config, tiny_model, tokens
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig, Qwen3Config

from llm_lab.errors import UserError
from llm_lab.estimate.compatibility import native_architecture
from llm_lab.estimate.parameters import context_in
from llm_lab.hf.adapter import make_peft_model
from llm_lab.hf.configs import config_of_parts, read_config
from llm_lab.hf.load import build_from_config, context_of, load_model, write_design
from llm_lab.hf.save import lab_config, native_config, restore_weights, save_model, set_special_tokens, to_native
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.recipe.resolve import resolve

NATIVE = {
    "llama": {},
    "llama-biased-tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-yarn-mha": {"position_embedding": "yarn", "num_key_value_heads": 4},
    "mistral": {"sliding_window": 5, "num_key_value_heads": 2},
    "mistral-yarn-head": {"position_embedding": "yarn", "sliding_window": 5, "head_dim": 12},
    "qwen3": {"qk_norm": True, "num_key_value_heads": 1, "norm_eps": 1e-3},
    "qwen3-windows-geglu": {"qk_norm": True, "sliding_window": "SL", "activation": "geglu", "zero_init": True},
    "qwen3-window-bias": {"qk_norm": True, "sliding_window": 5, "attention_bias": True, "tie_word_embeddings": True},
}
OWN = {
    "layernorm": {"norm": "layernorm"},
    "alibi": {"position_embedding": "alibi", "activation": "gelu"},
    "windows": {"sliding_window": "SL"},
    "extras": {"final_logit_softcapping": 3.0, "residual_scalars": True, "value_embeddings": True},
    "window-bias": {"sliding_window": 5, "attention_bias": True},
}
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CLASSES |= {"own": "LabForCausalLM"}
GPT2 = {"norm": "layernorm", "activation": "gelu", "tie_word_embeddings": True}


def model_of(parts: dict) -> LabForCausalLM:
    return tiny_model(parts.get("position_embedding", "rope"), **{k: v for k, v in parts.items() if k[:3] != "pos"})


def test_saved_folders_give_the_same_logits_without_llm_lab(tmp_path, run_without_llm_lab):
    ids, expected = tokens(2, 11), {}
    # Native folders must load without trust_remote_code.
    program = LOAD_WITHOUT_LLM_LAB.replace("trust_remote_code=True", 'trust_remote_code="/own/" in folder')
    for group, cases in {"native": NATIVE, "own": OWN}.items():
        for name, parts in cases.items():
            model = model_of(parts)
            save_model(model, tmp_path / group / name, make_byte_tokenizer())
            torch.save(ids, tmp_path / group / name / "ids.pt")
            expected[group, name] = model(ids).logits
    run_without_llm_lab(program, *(tmp_path / group / name for group, name in expected))
    for (group, name), logits in expected.items():
        loaded = torch.load(tmp_path / group / name / "logits.pt", weights_only=True)
        torch.testing.assert_close(loaded, logits, rtol=0, atol=1e-5)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / group / name, trust_remote_code=group == "own")
        assert type(again).__name__ == CLASSES[name.split("-")[0] if group == "native" else "own"]
        assert not [file for file in (tmp_path / group / name).iterdir() if file.suffix in (".bin", ".pkl", ".pth")]


@pytest.mark.parametrize("name", [*NATIVE, *OWN])
def test_a_saved_folder_is_loaded_as_a_lab_model(name, tmp_path):
    model = model_of((NATIVE | OWN)[name])
    model.config.hidden_dropout = 0.1
    save_model(model, tmp_path, make_byte_tokenizer())
    loaded = load_model(tmp_path)
    assert type(loaded).__name__ == "LabForCausalLM"
    assert loaded.config.hidden_dropout == 0.1
    assert not loaded.training
    torch.testing.assert_close(loaded(tokens(2, 9)).logits, model(tokens(2, 9)).logits, rtol=0, atol=1e-6)
    save_model(loaded, tmp_path / "again", make_byte_tokenizer())
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("parts", [*combinations(3), {"position": "learned", **GPT2}], ids=named)
def test_the_predicted_architecture_is_the_one_that_is_saved(parts):
    config = tiny_config(**parts)
    kind, reason = native_architecture({"num_attention_heads": 4} | recipe_keys(parts))
    native = native_config(config)
    assert (native.model_type if native is not None else None) == kind
    assert (kind or "own code") in reason.lower().replace("gpt-2", "gpt2")
    if native is not None and kind != "gpt2":
        assert lab_config(native).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "parts", [*NATIVE.values(), *OWN.values(), {"position_embedding": "learned", "attention": "mha", **GPT2}], ids=str
)
def test_a_design_is_trained_as_the_architecture_of_its_parts(parts, tmp_path):
    extras = {"zero_init": True, "dropout": 0.1, "attention_dropout": 0.05, "initializer_range": 0.01}
    design = resolve(tiny_recipe(**{"model.num_attention_heads": 4}, model=recipe_keys(parts) | extras)).values
    write_design(tmp_path, design)
    trained, of_parts = (
        build_from_config(config).config.to_dict() | {"_name_or_path": "", "auto_map": None}
        for config in (read_config(str(tmp_path)), config_of_parts(design["model"], 257))
    )
    assert trained == of_parts


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_model_shares_weights_and_training_continues(name):
    model = model_of(NATIVE[name]).train()
    twin = copy.deepcopy(model)
    native = to_native(model)
    shared = dict(native.named_parameters())
    for key, parameter in model.named_parameters():
        assert shared[key].data_ptr() == parameter.data_ptr(), key
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for one in (model, twin):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
        optimizer.step()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other)


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 16}


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_weights_of_a_model_with_scaled_rope_are_restored_which_the_trainer_fails_to_do(kind, tmp_path):
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}

    def made():
        if kind == "yarn":
            return LabForCausalLM(tiny_config("yarn", norm="layernorm", tie_word_embeddings=True))
        return AutoModelForCausalLM.from_config(LlamaConfig(**small, vocab_size=61, rope_parameters=LLAMA_3))

    model, other = made(), made()
    save_model(model, tmp_path)
    assert restore_weights(other, tmp_path)
    for (name, weight), restored in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(weight, restored), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_checkpoint_that_lacks_a_weight_is_not_resumed_from(tied, name, tmp_path):
    model = LabForCausalLM(tiny_config("yarn", norm="layernorm", tie_word_embeddings=tied))
    save_model(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if name not in weights:
        assert tied
        assert restore_weights(model, tmp_path), "a tied head has no weights of its own"
        return
    save_file({key: weight for key, weight in weights.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"its weights don't match the model: {name} \(1 in total\)"):
        restore_weights(model, tmp_path)


def test_to_native_ignores_other_models():
    assert to_native(model_of(OWN["alibi"])) is None
    assert to_native(AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9))) is None


def test_models_with_unsupported_parts_are_not_loaded_as_lab_models():
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    assert lab_config(LlamaConfig(**small, rope_parameters=LLAMA_3)) is None
    assert lab_config(LlamaConfig(**small, hidden_act="tanh")) is None
    assert lab_config(LlamaConfig(**small, hidden_act="gelu")).activation == "geglu"
    assert lab_config(GPT2Config()) is None
    some = Qwen3Config(**small, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert lab_config(some).layer_types == some.layer_types == ["full_attention", "sliding_attention"]
    none = lab_config(Qwen3Config(**small, head_dim=8, num_key_value_heads=2, sliding_window=4))
    assert none.sliding_window is None


@pytest.mark.parametrize("kind", ["bloom", "mpt", "gemma2"])
def test_a_model_without_sdpa_gets_another_kernel(kind, tmp_path):
    config = AutoConfig.for_model(kind, vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    model = build_from_config(config, attn_implementation="sdpa")
    assert model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path, attn_implementation="sdpa").config._attn_implementation == "eager"


def test_the_context_is_found_under_each_of_its_names():
    config = AutoConfig.for_model("mpt", vocab_size=64, d_model=32, n_heads=4, n_layers=1, max_seq_len=48)
    assert context_of(build_from_config(config)) == 48
    names = {"n_positions": 16, "seq_length": 32, "max_position_embeddings": 64}
    for name, length in names.items():
        assert context_in({"model_type": "other", name: length}) == length
    assert context_in({"text_config": {"max_position_embeddings": 8}}) == 8
    assert context_in({}) is None


def test_special_token_ids_are_set_in_both_configs(tmp_path):
    tokenizer = make_byte_tokenizer()
    model = tiny_model(vocab_size=257)
    set_special_tokens(model, tokenizer)
    save_model(model, tmp_path, tokenizer)
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (256, 256, 256)
    config = read_config(str(tmp_path))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (256, 256, None)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model.resize_token_embeddings(len(tokenizer))
    set_special_tokens(model, tokenizer)
    assert model.generation_config.pad_token_id == model.config.pad_token_id == 257


def test_native_configs_are_built_as_lab_models_and_others_by_transformers():
    native = native_config(tiny_config(sliding_window=5))
    assert isinstance(build_from_config(native), LabForCausalLM)
    assert type(build_from_config(GPT2Config(n_layer=1, n_head=1, n_embd=8))).__name__ == "GPT2LMHeadModel"
    with pytest.raises(UserError, match="this model can't be built"):
        build_from_config(LabConfig(position_embedding="alibi"), attn_implementation="flash_attention_2")


def test_a_model_that_cannot_be_loaded_is_reported(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"model\.checkpoint = org/no-such-name.*Hub can't be reached"):
        load_model("org/no-such-name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.config = .*empty"):
        read_config(str(tmp_path / "empty"))
    save_model(tiny_model(), tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"the model can't be loaded.*Its files may be damaged"):
        load_model(tmp_path / "cut")

    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", gated)
    with pytest.raises(UserError, match=r"gated or private.*hf auth login"):
        load_model("org/gated")


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForMaskedLM"])
def test_only_causal_models_are_loaded(tmp_path, kind):
    """transformers would load it, with the embeddings as head or with attention to later tokens."""
    import transformers

    from llm_lab.export.plan import plan_export

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=257, **sizes)
    getattr(transformers, f"Bert{kind}")(config).save_pretrained(tmp_path)
    for load in (load_model, plan_export):
        with pytest.raises(UserError, match=r"Use a causal language model|not supported"):
            load(str(tmp_path))


def test_kernels_that_a_config_names_are_never_loaded(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    named = {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    named |= {"experts_implementation": "someone/kernel", "use_kernels": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    model = load_model(tmp_path)
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path / "again")
    assert "someone" not in (tmp_path / "again" / "config.json").read_text()


def test_modules_that_an_adapter_names_are_never_imported(tmp_path, monkeypatch):
    from peft import LoraConfig

    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    make_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    (tmp_path / "evil.py").write_text("raise SystemExit('the module was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "a" / "adapter_config.json"
    named = {"megatron_core": "evil", "megatron_config": {"tensor_model_parallel_size": 1}}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    assert load_model(tmp_path / "a") is not None


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
STRANGERS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=40, num_key_value_heads=2, initializer_range=0.2),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, tie_word_embeddings=False
    ),
}
COMPUTED = {  # saved by earlier versions of transformers, computed by the current one
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
}


def write_stranger(folder, kind, *, weights=None, **config):
    """Write a model of transformers' own class, then add weights and change its config.json."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(STRANGERS[kind]))
    model.save_pretrained(folder)
    if weights:
        save_file(load_file(folder / "model.safetensors") | weights, folder / "model.safetensors", {"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | config))
    return model.eval()


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_head_of_its_own_is_kept_although_the_config_says_tied(kind, tmp_path):
    trained = write_stranger(tmp_path / "base", kind, tie_word_embeddings=True)
    model, ids = load_model(tmp_path / "base"), tokens(2, 9) % 64
    model.resize_token_embeddings(70)
    assert torch.equal(model(ids).logits[..., :64], trained(ids).logits)
    save_model(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(ids).logits[..., :64], trained(ids).logits)


@pytest.mark.parametrize("kind", STRANGERS)
def test_weights_that_the_config_leaves_out_are_an_error(kind, tmp_path):
    layers = "num_hidden_layers" if kind == "llama" else "n_layer"
    write_stranger(tmp_path, kind, **{layers: 1})
    with pytest.raises(UserError, match=r"leaves out weights .*\.1\..* more; num_hidden_layers is 1"):
        load_model(tmp_path)
    from llm_lab.rewards.classifier import load_classifier

    with pytest.raises(UserError, match="leaves out weights of the checkpoint"):
        load_classifier(tmp_path, new_head=True)


@pytest.mark.parametrize("kind", STRANGERS)
def test_buffers_that_earlier_versions_saved_are_not_errors(kind, tmp_path):
    trained = write_stranger(tmp_path, kind, weights={name: torch.ones(1, 1, 4, 4) for name in COMPUTED[kind]})
    ids = tokens(2, 9) % 64
    assert torch.allclose(load_model(tmp_path)(ids).logits, trained(ids).logits, atol=1e-5)


def test_transformers_4_finds_its_own_key_names(tmp_path):
    """Version 4.57 ignores rope_parameters, dtype and lists of extra tokens, and does not know TokenizersBackend."""
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    rope = {"rope_type": "default", "rope_theta": 5e5}
    save_model(tiny_model(rope_parameters=rope), tmp_path / "plain", tokenizer)
    save_model(tiny_model("yarn"), tmp_path / "yarn", tokenizer)
    written = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "yarn")}
    assert written["plain"]["rope_theta"] == written["plain"]["rope_parameters"]["rope_theta"] == 5e5
    assert "rope_scaling" not in written["plain"]
    assert written["yarn"]["rope_scaling"]["rope_type"] == "yarn"
    assert written["plain"]["torch_dtype"] == written["plain"]["dtype"] == "float32"
    described = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert described["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in described
    again = load_tokenizer(tmp_path / "plain")
    assert again("a<|im_start|>")["input_ids"] == tokenizer("a<|im_start|>")["input_ids"]
    assert "<|im_start|>" in again.all_special_tokens
    assert read_config(str(tmp_path / "plain")).rope_parameters == rope
    assert read_config(str(tmp_path / "yarn")).rope_parameters == tiny_model("yarn").config.rope_parameters
