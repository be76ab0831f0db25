"""LoRA: which layers get an adapter, what is trained, and how adapters are saved and loaded."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from support.adapters import (
    GPT2,
    PRESETS,
    ids,
    lora,
    perturb,
    save_base,
    with_chat_tokens,
)
from support.tiny_models import tiny_model
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)
from trl.trainer.dpo_trainer import use_adapter
from trl.trainer.utils import add_fused_lm_head

from llm_lab.chat.session import ChatSession, ChatSettings
from llm_lab.cli import main
from llm_lab.errors import MachineError, UserError
from llm_lab.estimate.machine import Gpu, Machine
from llm_lab.estimate.parameters import GATED, read_config_json, shape_of_config
from llm_lab.estimate.tuning_cost import adapter_parameters
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.load import load_model, require_4bit
from llm_lab.hf.lora_layers import attach_lora, describe_trainable, target_modules
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.model.modeling_lab import LabForSequenceClassification
from llm_lab.optim.factory import split_parameters
from llm_lab.recipe.parts import ACTIVATIONS
from llm_lab.recipe.resolve import require_device, resolve

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def from_config(config):
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_preset_trains_exactly_its_layers_for_every_activation(preset, activation):
    feed_forward = [*(["gate_proj"] if activation in GATED else []), "up_proj", "down_proj"]
    layers = {
        "minimal": (ATTENTION[0], ATTENTION[2]),
        "attention_only": ATTENTION,
        "ffn_only": tuple(f"mlp.{name}" for name in feed_forward),
        "all": (*ATTENTION, *(f"mlp.{name}" for name in feed_forward)),
    }[preset]
    model = attach_lora(tiny_model(activation=activation), lora(preset=preset), seed=1)
    found = describe_trainable(model)
    assert found.names == {
        f"base_model.model.model.layers.{block}.{layer}.lora_{matrix}.default.weight"
        for block in range(2)
        for layer in layers
        for matrix in "AB"
    }
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found.parameters == sum(sizes[name] for name in found.names)
    assert found.total == sum(sizes.values())
    assert found.describe().startswith(f"{found.parameters:,} of {found.total:,} parameters are trained (")


SEPARATE = {"q_proj", "k_proj", "v_proj"}
LLAMA = ({"q_proj", "v_proj"}, {*SEPARATE, "o_proj"}, {"gate_proj", "up_proj", "down_proj"})
NEOX = ({"query_key_value"}, {"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"})
FALCON = FalconConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
OPT = OPTConfig(**{**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16})


@pytest.mark.parametrize(
    ("config", "minimal", "attention", "feed_forward"),
    [
        (LlamaConfig(**SMALL), *LLAMA),
        (MistralConfig(**SMALL, num_key_value_heads=1), *LLAMA),
        (Qwen2Config(**SMALL, num_key_value_heads=1), *LLAMA),
        (GPT2Config(**GPT2), {"c_attn"}, {"c_attn", "attn.c_proj"}, {"c_fc", "mlp.c_proj"}),
        (GPTNeoXConfig(**SMALL), *NEOX),
        (FALCON, *NEOX),
        (PhiConfig(**SMALL), {"q_proj", "v_proj"}, {*SEPARATE, "dense"}, {"fc1", "fc2"}),
        (OPT, {"q_proj", "v_proj"}, {*SEPARATE, "out_proj"}, {"fc1", "fc2"}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_layers_of_other_model_families_are_recognized_by_role(config, minimal, attention, feed_forward):
    model = from_config(config)
    assert set(target_modules(model, "minimal")) == minimal
    assert set(target_modules(model, "attention_only")) == attention
    assert set(target_modules(model, "ffn_only")) == feed_forward
    trained = {}
    for preset in PRESETS:
        adapted = attach_lora(from_config(config), lora(preset=preset), seed=1)
        names = describe_trainable(adapted).names
        trained[preset] = {name.rpartition(".lora_")[0] for name in names}
        assert not any("head" in name or "embed" in name or "wte" in name for name in names)
    assert trained["all"] == trained["attention_only"] | trained["ffn_only"]
    assert not trained["attention_only"] & trained["ffn_only"]
    assert all("attn" in name or "attention" in name for name in trained["attention_only"])


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        (MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40), "minimal"),
        (MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40), "all"),
    ],
)
def test_the_error_for_an_unsupported_preset_lists_the_layers(config, preset):
    model = from_config(config)
    with pytest.raises(UserError, match=rf"lora.preset = {preset}.*are not recognized by name.*_proj.*preset=custom"):
        target_modules(model, preset)


@pytest.mark.parametrize("preset", ["ffn_only", "all"])
def test_the_experts_of_a_mixture_get_adapters_that_merge_and_their_router_does_not(preset, tmp_path):
    tokenizer = make_byte_tokenizer()
    sizes = {**SMALL, "vocab_size": 257, "num_key_value_heads": 1, "num_local_experts": 3}
    torch.manual_seed(0)
    save_model(from_config(MixtralConfig(**sizes)), tmp_path / "base", tokenizer)
    adapted = attach_lora(load_model(tmp_path / "base"), lora(preset=preset, dropout=0.0), seed=1)
    names = describe_trainable(adapted).names
    assert {name.partition("layers.0.")[2].partition(".lora_")[0] for name in names if "layers.0" in name} >= {
        "mlp.experts",
        "mlp.experts.base_layer",
    }
    assert any("self_attn" in name for name in names) == (preset == "all")
    shape = shape_of_config(read_config_json(tmp_path / "base"))
    assert adapter_parameters(shape, {"r": 4, "preset": preset}) == describe_trainable(adapted).parameters
    assert not any("mlp.gate" in name for name in names)
    ids = torch.randint(0, 257, (2, 12))
    adapted.train()(input_ids=ids, labels=ids).loss.backward()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            parameter.data += torch.randn_like(parameter) * 0.3
    expected = adapted.eval()(input_ids=ids).logits
    save_model(adapted, tmp_path / "adapter", tokenizer)
    for merge in (False, True):
        loaded = load_model(tmp_path / "adapter", merge=merge)
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(load_model(tmp_path / "base")(ids).logits, expected, atol=1e-3)


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.1), ("use_dora", True)])
def test_unsupported_options_of_adapters_on_experts_are_refused(key, value):
    model = from_config(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2))
    with pytest.raises(UserError, match=rf"lora.{key} = .*adapters on the experts of a mixture"):
        attach_lora(model, lora(preset="all", **{"dropout": 0.0, key: value}), seed=1)


def test_custom_names_are_used_as_given_and_all_wrong_ones_are_reported():
    model = tiny_model()
    adapted = attach_lora(model, lora(preset="custom", target_modules=("o_proj", "lm_head")), seed=1)
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in describe_trainable(adapted).names}
    assert layers == {"lm_head", *(f"model.layers.{block}.self_attn.o_proj" for block in range(2))}
    with pytest.raises(UserError) as caught:
        target_modules(tiny_model(), "custom", ("q_prj", "o_proj", "c_attn"))
    first, second = caught.value.problems
    assert first.value == "q_prj"
    assert "Did you mean q_proj?" in str(first)
    assert second.value == "c_attn"
    assert "up_proj" in second.allowed
    with pytest.raises(UserError, match="untie them"):
        target_modules(tiny_model(tie_word_embeddings=True), "custom", ("embed_tokens",))


def test_the_adapter_depends_on_its_seed_and_the_global_random_state_is_unchanged():
    def weights(seed):
        model = attach_lora(tiny_model(), lora(), seed=seed)
        return {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}

    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    model, first = tiny_model(), weights(1)
    del model
    torch.manual_seed(4)
    attached = tiny_model()
    torch.manual_seed(4)
    attach_lora(attached, lora(), seed=1)
    assert torch.equal(torch.rand(3), expected)
    second, other = weights(1), weights(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_new_adapter_does_not_change_the_model_and_has_the_given_options():
    model = tiny_model()
    plain = model(ids(model)).logits
    adapted = attach_lora(model, lora(r=3, alpha=6, dropout=0.25, use_rslora=True, use_dora=True), seed=1)
    torch.testing.assert_close(adapted.eval()(ids(model)).logits, plain, rtol=0, atol=1e-5)
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    assert layer.r["default"] == 3
    assert layer.scaling["default"] == pytest.approx(6 / 3**0.5)
    assert layer.lora_dropout["default"].p == 0.25
    assert any("lora_magnitude_vector" in name for name in describe_trainable(adapted).names)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_rows_of_new_tokens_are_trained_in_embeddings_and_head(tied, tmp_path):
    base, _ = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied))
    before = {name: p.clone() for name, p in base.named_parameters()}
    # Token 7 already has a row in the base.
    model = attach_lora(base, lora(preset="minimal"), seed=1, new_token_ids=[7]).train()
    rows = {name for name in describe_trainable(model).names if "trainable_tokens" in name}
    ends = ["model.embed_tokens", *([] if tied else ["lm_head"])]
    assert rows == {f"base_model.model.{end}.token_adapter.trainable_tokens_delta.default" for end in ends}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    batch = torch.tensor([[257, 7, 258, 20, 257, 30]])
    model(batch, labels=batch).loss.backward()
    optimizer.step()
    merged = model.merge_and_unload()
    moved = (merged.model.embed_tokens.weight != before["model.embed_tokens.weight"]).any(dim=1).nonzero().flatten()
    assert moved.tolist() == [7, 257, 258]
    head = before.get("lm_head.weight", before["model.embed_tokens.weight"])
    assert (merged.lm_head.weight != head).any(dim=1).nonzero().flatten().tolist() == [7, 257, 258]
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_a_saved_adapter_is_loaded_with_its_vocabulary_and_end_token(tied, native, tmp_path):
    parts = {} if native else {"norm": "layernorm"}
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied, **parts))
    model = perturb(attach_lora(base, lora(use_dora=True), seed=1))
    expected = model(ids(model)).logits
    save_model(model, tmp_path / "adapter", tokenizer)
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(tmp_path / "base")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"model.safetensors", "config.json", "README.md"}
    loaded = load_model(tmp_path / "adapter")
    assert torch.equal(loaded(ids(model)).logits, expected)
    assert not describe_trainable(loaded).names
    assert (
        loaded.get_base_model().config.eos_token_id == loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    )
    merged = load_model(tmp_path / "adapter", merge=True)
    assert type(merged).__name__ == "LabForCausalLM"
    torch.testing.assert_close(merged(ids(model)).logits, expected, rtol=0, atol=1e-4)


def test_chat_works_with_an_adapter(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_model(perturb(attach_lora(base, lora(), seed=1)), tmp_path / "adapter", tokenizer)
    model, tokenizer = load_model(tmp_path / "adapter"), load_tokenizer(tmp_path / "adapter")
    session = ChatSession(model, tokenizer, name="adapter", settings=ChatSettings(max_new_tokens=5, temperature=0))
    assert session.mode == "chat"
    list(session.reply("hello"))
    expected = model.generate(
        torch.tensor([tokenizer("<|im_start|>hello<|im_end|><|im_start|>", add_special_tokens=False)["input_ids"]]),
        max_new_tokens=session.last_stats.tokens,
        do_sample=False,
    )
    answer = tokenizer.decode(expected[0, session.last_stats.prompt_tokens :], skip_special_tokens=True)
    assert session.messages[1]["content"] == answer.rstrip("\ufffd")  # the last character may be incomplete


@pytest.mark.parametrize("tied", [True, False])
def test_optimizers_treat_the_rows_of_new_tokens_as_embeddings(tied, tmp_path):
    base, _ = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied))
    model = attach_lora(base, lora(use_dora=True), seed=1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, embeddings, vectors = ({names[id(p)] for p in group} for group in split_parameters(model))
    assert matrices | embeddings | vectors == describe_trainable(model).names
    assert embeddings == {name for name in names.values() if "trainable_tokens_delta" in name}
    assert vectors == {name for name in names.values() if "lora_magnitude_vector" in name}


WITHOUT_LLM_LAB = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
torch.save(model(torch.load(folder + "/ids.pt", weights_only=True)).logits, folder + "/logits.pt")
"""


def test_peft_without_llm_lab_loads_an_adapter_on_a_native_base(tmp_path, run_without_llm_lab):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base", num_key_value_heads=2))
    model = perturb(attach_lora(base, lora(), seed=1))
    save_model(model, tmp_path / "adapter", tokenizer)
    torch.save(ids(model), tmp_path / "adapter" / "ids.pt")
    run_without_llm_lab(WITHOUT_LLM_LAB, tmp_path / "adapter")
    loaded = torch.load(tmp_path / "adapter" / "logits.pt", weights_only=True)
    torch.testing.assert_close(loaded, model(ids(model)).logits, rtol=0, atol=1e-5)


def test_an_adapter_finds_its_base_after_both_were_moved(tmp_path):
    runs = tmp_path / "here" / "checkpoints" / "life"
    base = save_base(runs / "pretrain" / "model")
    save_model(perturb(attach_lora(base, lora(), seed=1)), runs / "sft" / "model", make_byte_tokenizer())
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = tmp_path / "there" / "checkpoints" / "life"
    assert read_adapter(moved / "sft" / "model").base == str(moved / "pretrain" / "model")
    load_model(moved / "sft" / "model")
    # Another model at the same relative path is not accepted.
    save_model(tiny_model(vocab_size=257, norm="layernorm"), moved / "pretrain" / "model", make_byte_tokenizer())
    with pytest.raises(UserError, match=r"the base model of this adapter does not exist: .*Restore it"):
        load_model(moved / "sft" / "model")


def test_an_adapter_that_names_itself_as_its_base_is_refused(tmp_path):
    save_model(attach_lora(save_base(tmp_path / "base"), lora(), seed=1), tmp_path / "sft", make_byte_tokenizer())
    file = tmp_path / "sft" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "sft")}))
    with pytest.raises(UserError, match="names itself as its base"):
        read_adapter(tmp_path / "sft")
    assert read_config_json(tmp_path / "sft") is None


def test_an_adapter_trained_on_an_adapter_is_loaded_with_both(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    first = perturb(attach_lora(base, lora(), seed=1))
    save_model(first, tmp_path / "first", tokenizer)
    second = attach_lora(load_model(tmp_path / "first", merge=True), lora(preset="minimal"), seed=2)
    assert not any("trainable_tokens" in name for name in describe_trainable(second).names)
    with torch.no_grad():
        reference = second.eval()(ids(second)).logits
    torch.testing.assert_close(reference, first(ids(first)).logits, rtol=0, atol=1e-4)
    expected = perturb(second)(ids(second)).logits
    save_model(second, tmp_path / "second", tokenizer)
    assert read_adapter(tmp_path / "second").base == str((tmp_path / "first").resolve())
    torch.testing.assert_close(load_model(tmp_path / "second")(ids(second)).logits, expected, rtol=0, atol=1e-4)


def test_only_the_trained_adapter_is_saved_without_its_reference_copy(tmp_path):
    model = attach_lora(save_base(tmp_path / "base"), lora(), seed=1)
    model.add_adapter("ref", model.peft_config["default"])  # as TRL does with a PeftModel
    save_model(perturb(model), tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "ref").exists()
    torch.testing.assert_close(load_model(tmp_path / "adapter")(ids(model)).logits, model(ids(model)).logits)


def test_the_plan_and_the_show_command_support_adapters(tmp_path, capsys):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_model(attach_lora(base, lora(preset="minimal"), seed=1), tmp_path / "run" / "model", tokenizer)
    shape = shape_of_config(read_config_json(tmp_path / "run"))
    assert shape.parameters == sum(p.numel() for p in load_model(tmp_path / "run" / "model", merge=True).parameters())
    assert main(["show", str(tmp_path / "run")]) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "LoRA, r 4, alpha 8.0, on q_proj, v_proj" in message
    assert "259 entries" in message
    assert "llm-lab merge" in message
    shutil.rmtree(tmp_path / "base")
    assert read_config_json(tmp_path / "run") is None
    assert main(["show", str(tmp_path / "run")]) == 2
    assert "the base model of this adapter is not at" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("reference", ["ref", None])
@pytest.mark.parametrize("tied", [True, False])
def test_trl_uses_the_rows_of_new_tokens_and_the_base_as_its_reference(tied, reference, tmp_path):
    base, _ = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied))
    batch = ids(base)

    def log_probs(logits):
        return torch.log_softmax(logits, dim=-1)[:, :-1].gather(-1, batch[:, 1:, None]).flatten()

    before = log_probs(base(batch).logits).detach()
    model = attach_lora(base, lora(), seed=1)
    model.add_adapter("ref", model.peft_config["default"])  # as TRL does; otherwise TRL disables the adapter
    add_fused_lm_head(perturb(model).get_base_model())
    with torch.no_grad(), use_adapter(model, adapter_name=reference):
        found = model(batch, labels=batch, fused_lm_head=True).log_probs.flatten()
    torch.testing.assert_close(found, before, rtol=0, atol=1e-4)
    found = model(batch, labels=batch, fused_lm_head=True).log_probs.flatten()
    torch.testing.assert_close(found, log_probs(model(batch).logits), rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.1
    found.sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_the_score_head_of_a_reward_model_is_trained_in_full():
    torch.manual_seed(0)
    reward_model = LabForSequenceClassification(tiny_model().config)
    model = attach_lora(reward_model, lora(preset="minimal"), seed=1)
    names = describe_trainable(model).names
    assert "base_model.model.score.modules_to_save.default.weight" in names
    assert not any("score.original_module" in name for name in names)
    assert sum("lora_" in name for name in names) == 8


def test_new_rows_are_refused_for_a_head_with_a_bias(tmp_path):
    base = from_config(PhiConfig(**SMALL))
    base.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    attach_lora(base, lora(), seed=1)
    with pytest.raises(UserError, match="bias in its head"):
        attach_lora(AutoModelForCausalLM.from_pretrained(tmp_path), lora(), seed=1, new_token_ids=[5])


def test_rows_of_known_control_tokens_are_trained_if_the_model_allows_it(tmp_path):
    base, ends = save_base(tmp_path / "base", tie_word_embeddings=False), ("model.embed_tokens", "lm_head")
    model = attach_lora(base, lora(), seed=1, control_ids=[7, 9])
    assert model.peft_config["default"].trainable_token_indices == {end: [7, 9] for end in ends}
    from_config(PhiConfig(**SMALL)).save_pretrained(tmp_path / "phi")
    phi = AutoModelForCausalLM.from_pretrained(tmp_path / "phi")
    assert attach_lora(phi, lora(), seed=1, control_ids=[5]).peft_config["default"].trainable_token_indices is None


def test_new_rows_and_an_adapter_on_the_head_are_refused_together():
    with pytest.raises(UserError, match="trained in full"):
        attach_lora(tiny_model(), lora(preset="custom", target_modules=("lm_head",)), seed=1, new_token_ids=[5])


def test_broken_and_unsupported_adapters_are_reported(tmp_path):
    base = save_base(tmp_path / "base")
    save_model(attach_lora(base, lora(), seed=1), tmp_path / "adapter")
    with pytest.raises(UserError, match="it is a full model"):
        read_adapter(tmp_path / "base")
    with pytest.raises(UserError, match=r"it has no adapter_config\.json"):
        read_adapter(tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for tokens in ([5, 6], -0.5):
        path.write_text(json.dumps({**config, "alora_invocation_tokens": tokens}))
        with pytest.raises(UserError, match=r"activated LoRA, .*is not supported"):
            load_model(tmp_path / "adapter")
    path.write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(UserError, match="type IA3 is not supported, only LoRA"):
        read_adapter(tmp_path / "adapter")
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not name its base model"):
        read_adapter(tmp_path / "adapter")
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"does not exist: .*gone"):
        load_model(tmp_path / "adapter")
    path.write_text(json.dumps(config))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        load_model(tmp_path / "adapter")


def test_4_bit_loading_is_refused_before_training(tmp_path):
    save_base(tmp_path / "base")
    recipe = {"stage": "sft", "data": [{"path": "chats.jsonl"}], "lora": {"load_in_4bit": True}}
    recipe |= {"model": {"checkpoint": str(tmp_path / "base")}}
    machine = Machine((Gpu("NVIDIA H100", 80 * 2**30, (9, 0)),), "a CPU", 16, 128 * 2**30, True, True)
    with pytest.raises(MachineError, match=r"lora\.load_in_4bit = true: .*bitsandbytes.*load_in_4bit=false"):
        require_device(resolve(recipe, machine=machine))
    require_device(resolve(recipe, machine=replace(machine, has_bitsandbytes=True)))
    with pytest.raises(UserError, match=r"lora\.load_in_4bit = true: .*CUDA"):
        resolve({**recipe, "device": "cpu"}, machine=machine)


def test_adapter_dropout_is_0_for_stages_that_use_probability_ratios(tmp_path):
    save_base(tmp_path / "base")
    recipe = {"device": "cpu", "data": [{"path": "chats.jsonl"}], "model": {"checkpoint": str(tmp_path / "base")}}
    rewards = {"rewards": [{"name": "exact_number"}]}
    terms = {stage: {**rewards, stage: {"max_completion_length": 16}} for stage in ("grpo", "ppo")}
    for stage, dropout in {"sft": 0.05, "dpo": 0.0, "grpo": 0.0, "ppo": 0.0}.items():
        resolved = resolve({"stage": stage, **recipe, **terms.get(stage, {}), "lora": {}})
        assert resolved.recipe.lora.dropout == dropout
        model = attach_lora(load_model(tmp_path / "base"), resolved.recipe.lora, seed=1).train()
        rates = {m.p for name, m in model.named_modules() if "lora_dropout" in name and isinstance(m, torch.nn.Dropout)}
        assert rates == ({dropout} if dropout else set())


def test_4_bit_loading_requires_cuda_and_bitsandbytes(monkeypatch):
    with pytest.raises(
        MachineError, match=r"load_in_4bit = true: 4-bit loading requires a CUDA GPU.*load_in_4bit=false"
    ):
        require_4bit("cpu")
    monkeypatch.setattr("llm_lab.hf.load.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="bitsandbytes is not installed"):
        require_4bit("cuda")
