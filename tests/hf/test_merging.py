"""Merging an adapter gives the same model as a plain folder, or a clear error."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import GPT2, PRESETS, chat_tokenizer, ids, lora, perturb, save_base, with_chat_tokens
from support.listeners import Handlers
from support.sampling import every_pair
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import MERGE_TOLERANCES, settings_digest
from llm_lab.events import ignore
from llm_lab.hf.adapter import make_peft_model, read_adapter
from llm_lab.hf.load import load_model
from llm_lab.hf.lora_layers import attach_lora
from llm_lab.hf.merging import merge_adapter
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.model.modeling_lab import LabForSequenceClassification
from llm_lab.recipe.merge import MergeRecipe
from llm_lab.recipe.parts import ACTIVATIONS
from llm_lab.recipe.resolve import resolve
from llm_lab.rewards.classifier import load_classifier
from llm_lab.runs.folder import RunFolder
from llm_lab.stages import merge as merge_stage
from llm_lab.stages.merge import merge_into


class Notices(Handlers):
    def __init__(self):
        self.lines = []

    def notice(self, text):
        self.lines.append(text)


def save_adapter_on(base, folder: Path, tokenizer=None, **options):
    """Save an adapter with perturbed weights; return the attached model."""
    model = perturb(attach_lora(base, lora(**options), seed=1))
    save_model(model, folder, tokenizer)
    return model


def rewrite(file: Path, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(("preset", "tied", "activation"), every_pair(PRESETS, [True, False], ACTIVATIONS))
def test_merged_equals_attached_for_every_preset_and_activation(preset, tied, activation, tmp_path):
    base = save_base(tmp_path / "base", activation=activation, tie_word_embeddings=tied)
    before = {name: p.clone() for name, p in base.named_parameters()}
    attached = save_adapter_on(base, tmp_path / "adapter", preset=preset)
    expected = attached(ids(attached)).logits
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.effect > 0.1
    assert merged.dtype == "float32"
    assert merged.relative_difference < 1e-5
    whole = load_model(tmp_path / "merged")
    torch.testing.assert_close(whole(ids(attached)).logits, expected, rtol=1e-4, atol=1e-4)
    assert whole.config.tie_word_embeddings == tied
    # Compute it here: W + alpha / r * B A for layers with an adapter, and W for others.
    deltas = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, parameter in whole.named_parameters():
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        expected = before[name]
        if f"{stem}A.weight" in deltas:
            expected = expected + 8 / 4 * deltas[f"{stem}B.weight"] @ deltas[f"{stem}A.weight"]
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}])
@pytest.mark.parametrize("tied", [True, False])
def test_dora_and_rslora_adapters_merge_with_new_tokens(options, tied, tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied, norm="layernorm"))
    attached = save_adapter_on(base, tmp_path / "adapter", tokenizer, **options)
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.relative_difference < 1e-5
    whole = load_model(tmp_path / "merged")
    torch.testing.assert_close(whole(ids(attached)).logits, attached(ids(attached)).logits, rtol=1e-4, atol=1e-4)
    assert whole.config.vocab_size == len(tokenizer)
    assert (whole.lm_head.weight is whole.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_the_trained_rows_of_new_tokens_are_in_the_merged_model(tied, tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied))
    save_adapter_on(base, tmp_path / "adapter", tokenizer, preset="minimal")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    rows = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    whole = load_model(tmp_path / "merged")
    delta = "base_model.model.{}.token_adapter.trainable_tokens_delta"
    assert torch.equal(whole.model.embed_tokens.weight[257:], rows[delta.format("model.embed_tokens")])
    head = "model.embed_tokens" if tied else "lm_head"
    assert torch.equal(whole.lm_head.weight[257:], rows[delta.format(head)])


def test_template_tokenizer_and_generation_config_are_kept(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    base.generation_config.repetition_penalty = 1.25
    save_adapter_on(base, tmp_path / "adapter", tokenizer)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    kept = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert kept.chat_template == tokenizer.chat_template
    assert kept.get_vocab() == tokenizer.get_vocab()
    assert kept.eos_token == "<|im_end|>"
    generation = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert generation.repetition_penalty == 1.25
    assert generation.eos_token_id == load_model(tmp_path / "merged").config.eos_token_id == kept.eos_token_id
    assert not [file for file in (tmp_path / "merged").iterdir() if "adapter" in file.name or file.suffix == ".bin"]


WITHOUT_LLM_LAB = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder, trust in zip(sys.argv[1:], (False, True)):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust).eval()
    assert model.get_input_embeddings().weight.shape[0] == len(AutoTokenizer.from_pretrained(folder))
    torch.save(model(torch.load(folder + "/ids.pt", weights_only=True)).logits, folder + "/logits.pt")
"""


def test_a_merged_folder_loads_without_llm_lab(tmp_path, run_without_llm_lab):
    expected = {}
    for name, parts in {"native": {"tie_word_embeddings": True}, "own": {"position_embedding": "alibi"}}.items():
        position = parts.pop("position_embedding", "rope")
        base, tokenizer = with_chat_tokens(save_base(tmp_path / name, position=position, **parts))
        model = save_adapter_on(base, tmp_path / f"{name}-adapter", tokenizer)
        merge_adapter(tmp_path / f"{name}-adapter", tmp_path / f"{name}-merged")
        torch.save(ids(model), tmp_path / f"{name}-merged" / "ids.pt")
        expected[name] = model(ids(model)).logits
    assert json.loads((tmp_path / "native-merged" / "config.json").read_text())["model_type"] == "llama"
    run_without_llm_lab(WITHOUT_LLM_LAB, *(tmp_path / f"{name}-merged" for name in expected))
    for name, logits in expected.items():
        loaded = torch.load(tmp_path / f"{name}-merged" / "logits.pt", weights_only=True)
        torch.testing.assert_close(loaded, logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_made_with_peft_merges(tmp_path):
    from peft import LoraConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(**{**GPT2, "vocab_size": 257, "n_positions": 32}))
    model.save_pretrained(tmp_path / "base")
    make_byte_tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(260)  # PEFT saves the embeddings in full
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    model = perturb(make_peft_model(model, config))
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        model.save_pretrained(tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.relative_difference < 1e-5
    assert merged.adapter.digest is None
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(whole(ids(model)).logits, model(ids(model)).logits, rtol=1e-4, atol=1e-4)


def test_a_bf16_base_stays_bf16_and_the_merge_is_verified_before_rounding(tmp_path):
    base = save_base(tmp_path / "fp32")
    save_model(base.bfloat16(), tmp_path / "base", make_byte_tokenizer())
    attached = save_adapter_on(load_model(tmp_path / "base"), tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.dtype == "bfloat16"
    assert merged.float32_difference / merged.largest_logit < 1e-5
    assert 1e-4 < merged.relative_difference < merged.tolerance == 2e-2
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    want = attached.merge_and_unload().state_dict()
    assert all(torch.equal(weights[name], want[name].bfloat16()) for name in weights)
    with pytest.raises(UserError, match=r"saved in bfloat16 differs from the base with the adapter.*allowed 0\.001"):
        merge_adapter(tmp_path / "adapter", tmp_path / "again", tolerance=1e-3)


def test_a_larger_tolerance_is_suggested_only_where_it_sets_the_limit(tmp_path, monkeypatch):
    save_model(save_base(tmp_path / "fp32").bfloat16(), tmp_path / "base", make_byte_tokenizer())
    save_adapter_on(load_model(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"without merging, or set a larger merge\.tolerance\."):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", tolerance=1e-9)
    monkeypatch.setitem(MERGE_TOLERANCES, "float32", 0.0)
    with pytest.raises(UserError, match=r"merged in float32 differs .* Use the adapter without merging\.$"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", tolerance=0.5)


def test_an_adapter_on_an_adapter_merges_into_one_model(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_adapter_on(base, tmp_path / "first", tokenizer)
    second = save_adapter_on(load_model(tmp_path / "first", merge=True), tmp_path / "second", tokenizer)
    merge_adapter(tmp_path / "second", tmp_path / "merged")
    whole = load_model(tmp_path / "merged")
    torch.testing.assert_close(whole(ids(second)).logits, second(ids(second)).logits, rtol=1e-4, atol=1e-4)


def test_a_reward_model_merges_with_its_head(tmp_path):
    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    config = tiny_model(vocab_size=257, norm="layernorm").config
    config.num_labels = 1
    save_model(LabForSequenceClassification(config), tmp_path / "base", tokenizer)
    reward_model = load_classifier(tmp_path / "base", new_head=True)
    save_adapter_on(reward_model, tmp_path / "adapter", tokenizer, preset="minimal")
    expected = reward_model(ids(reward_model)[:1]).logits
    notices = Notices()
    merge_into(tmp_path / "adapter", tmp_path / "merged", notices)
    torch.testing.assert_close(load_classifier(tmp_path / "merged")(ids(reward_model)[:1]).logits, expected)
    with pytest.raises(UserError, match="adapter of a reward model"):
        load_model(tmp_path / "adapter")


def other_weights(tmp_path: Path):
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    return "different digest"


def narrower_base(tmp_path: Path):
    save_base(tmp_path / "base", hidden_size=16)
    return "does not match its base.*size mismatch"


def shallower_base(tmp_path: Path):
    save_base(tmp_path / "base", num_hidden_layers=1)
    return "does not match its base.*the base has no layer for"


def deeper_base(tmp_path: Path):
    save_base(tmp_path / "base", num_hidden_layers=3)
    return "does not match its base.*the adapter is missing"


def other_layers(tmp_path: Path):
    AutoModelForCausalLM.from_config(GPT2Config(**{**GPT2, "vocab_size": 257})).save_pretrained(tmp_path / "base")
    return "does not match its base.*not found in the base model"


def smaller_vocabulary(tmp_path: Path):
    save_model(tiny_model(vocab_size=200), tmp_path / "base", make_byte_tokenizer())
    return "does not match its base.*lacks rows for some of the tokens from 200 on"


def other_tokenizer(tmp_path: Path):
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    tokenizer.save_pretrained(tmp_path / "base")
    return "its tokenizer differs from that of its base.*1 tokens, such as '<|other|>'"


@pytest.mark.parametrize(
    "change",
    [other_weights, narrower_base, shallower_base, deeper_base, other_layers, smaller_vocabulary, other_tokenizer],
)
def test_a_different_base_is_refused_and_no_files_are_left(change, tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_adapter_on(base, tmp_path / "adapter", tokenizer)
    words = change(tmp_path)
    if change is not other_weights:
        (tmp_path / "adapter" / "base_model.json").unlink()  # as made by other tools, without a digest
    with pytest.raises(UserError, match=words.replace("|", r"\|")):
        merge_into(tmp_path / "adapter", tmp_path / "merged", ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_an_adapter_is_not_loaded_with_a_base_that_has_changed(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_adapter_on(base, tmp_path / "first", tokenizer)
    save_adapter_on(load_model(tmp_path / "first", merge=True), tmp_path / "second", tokenizer)
    load_model(tmp_path / "second")
    words = other_weights(tmp_path)
    for name in ("first", "second"):
        with pytest.raises(UserError, match=words):
            load_model(tmp_path / name)


def test_a_folder_that_is_not_an_adapter_is_refused(tmp_path):
    save_base(tmp_path / "base")
    with pytest.raises(UserError, match="this folder is not an adapter: it is a full model"):
        merge_into(tmp_path / "base", tmp_path / "merged", ignore)
    with pytest.raises(UserError, match="there is no such run or model"):
        merge_into(tmp_path / "nowhere", tmp_path / "merged", ignore)
    with pytest.raises(UserError, match="the folder is not empty"):
        merge_into(tmp_path / "base", tmp_path, ignore)


def made_with_peft(tmp_path: Path, **options) -> Path:
    """An adapter by PEFT alone, on a base without biases."""
    from peft import LoraConfig

    save_base(tmp_path / "base")
    base = load_model(tmp_path / "base")
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    make_byte_tokenizer().save_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options)
    make_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_adapter_with_biases_that_its_base_lacks_is_not_merged(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = made_with_peft(tmp_path, lora_bias=True)
    load_model(adapter)
    for attempt in (
        lambda: load_model(adapter, merge=True),
        lambda: merge_into(adapter, tmp_path / "merged", ignore),
    ):
        with pytest.raises(UserError, match=r"can't be merged: it has biases of its own \(lora_bias\)"):
            attempt()


@pytest.mark.filterwarnings("error::UserWarning")
def test_missing_weights_of_an_adapter_are_an_error_instead_of_a_warning_by_peft(tmp_path):
    adapter = made_with_peft(tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapter is missing"):
        load_model(adapter)


def test_an_adapter_in_a_pickle_says_how_to_convert_it_and_the_command_works(tmp_path):
    adapter = made_with_peft(tmp_path)
    expected = load_file(adapter / "adapter_model.safetensors")
    torch.save(expected, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="a pickle, which can run code") as caught:
        read_adapter(adapter)
    code = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    exec(code, {})
    assert load_file(adapter / "adapter_model.safetensors").keys() == expected.keys()
    load_model(adapter)


def test_a_merge_that_differs_too_much_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    save_adapter_on(base, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"relative logit difference .*e-\d+, allowed 1e-12"):
        merge_into(tmp_path / "adapter", tmp_path / "merged", ignore, tolerance=1e-12)
    assert not (tmp_path / "merged").exists()


def test_the_differences_and_an_adapter_without_effect_are_reported(tmp_path):
    base = save_base(tmp_path / "base")
    save_model(attach_lora(base, lora(), seed=1), tmp_path / "adapter")
    notices = Notices()
    merge_into(tmp_path / "adapter", tmp_path / "merged", notices)
    assert any("logit difference at most" in line and "allowed 0.0001" in line for line in notices.lines)
    assert any("the adapter has no effect" in line for line in notices.lines)
    rewrite(tmp_path / "adapter" / "base_model.json", load_in_4bit=True)
    merge_into(tmp_path / "adapter", tmp_path / "again", notices)
    assert any("trained on a 4-bit base" in line for line in notices.lines)


def test_the_reported_effect_of_an_adapter_with_new_tokens_does_not_depend_on_the_random_state(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_adapter_on(base, tmp_path / "adapter", tokenizer)
    effects = []
    for number in range(2):
        torch.manual_seed(number)
        effects.append(merge_adapter(tmp_path / "adapter", tmp_path / f"merged-{number}").effect)
    assert effects[0] == effects[1] > 0


def test_the_stage_writes_a_run_with_its_lineage(tmp_path):
    base, tokenizer = with_chat_tokens(save_base(tmp_path / "base"))
    save_adapter_on(base, tmp_path / "adapter", tokenizer)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    values = {"stage": "merge", "name": "run", "device": "cpu", "model": {"checkpoint": str(tmp_path / "adapter")}}
    result = merge_stage.run(MergeRecipe.model_validate(values), folder, ignore)
    assert result.status == "done"
    assert 0 <= result.results["relative_logit_difference"] < 1e-5 < result.results["adapter_effect"]
    facts = folder.facts()
    assert facts["parent"]["path"] == str(tmp_path / "adapter")
    assert facts["base"]["path"] == str((tmp_path / "base").resolve())
    assert facts["base"]["digest"] == read_adapter(tmp_path / "adapter").digest
    assert facts["base"]["settings"] == settings_digest(tmp_path / "base")
    assert load_model(folder.model_path).config.vocab_size == len(chat_tokenizer())


def make_run(in_tmp_path):
    """Write the folder of a pipeline whose second stage trained an adapter."""
    outer = RunFolder(in_tmp_path / "checkpoints" / "life")
    for name in ("pretrain", "sft"):
        (outer.path / name).mkdir(parents=True)
        RunFolder(outer.path / name).update(name=name, stage=name, status="done")
    outer.update(name="life", stages=["pretrain", "sft"], status="done")
    base, tokenizer = with_chat_tokens(save_base(outer.path / "pretrain" / "model"))
    return save_adapter_on(base, outer.path / "sft" / "model", tokenizer)


def test_the_merge_command_makes_a_run_that_can_be_replayed(in_tmp_path, capsys):
    attached = make_run(in_tmp_path)
    assert main(["merge", "checkpoints/life"]) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "checkpoints/life/sft/model" in message
    assert "logit difference at most" in message
    assert "Done: checkpoints/life-sft-merged/" in message
    whole = load_model("checkpoints/life-sft-merged/model")
    torch.testing.assert_close(whole(ids(attached)).logits, attached(ids(attached)).logits, rtol=1e-4, atol=1e-4)
    facts = RunFolder(Path("checkpoints/life-sft-merged")).facts()
    assert facts["status"] == "done"
    assert facts["parameters"] == sum(parameter.numel() for parameter in whole.parameters())
    assert "logit difference" in Path("checkpoints/life-sft-merged/report.md").read_text()
    recipe = Path("checkpoints/life-sft-merged/recipe.yaml")
    assert "tolerance: 0.0001" in recipe.read_text()
    assert main(["run", str(recipe)]) == 0
    again = load_file("checkpoints/life-sft-merged-2/model/model.safetensors")
    first = load_file("checkpoints/life-sft-merged/model/model.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_the_merge_command_writes_a_plain_folder_with_out(in_tmp_path, capsys):
    attached = make_run(in_tmp_path)
    assert main(["merge", "life", "--out", "plain"]) == 0
    assert "llm-lab chat plain" in capsys.readouterr().out
    torch.testing.assert_close(
        load_model("plain")(ids(attached)).logits, attached(ids(attached)).logits, rtol=1e-4, atol=1e-4
    )
    assert not Path("plain/run.json").exists()
    assert main(["merge", "plain", "--out", "twice"]) == 2
    assert "this folder is not an adapter" in capsys.readouterr().err
    assert main(["merge", "plain"]) == 2
    assert not Path("checkpoints/plain-merged").exists()
    assert main(["merge", "life", "--out", "plain"]) == 2
    assert "the folder is not empty" in capsys.readouterr().err


def test_the_tolerance_depends_on_the_dtype_of_the_base(in_tmp_path):
    save_model(save_base(in_tmp_path / "fp32").bfloat16(), in_tmp_path / "base", make_byte_tokenizer())
    save_adapter_on(load_model(in_tmp_path / "base"), in_tmp_path / "adapter")
    recipe = {"stage": "merge", "device": "cpu", "model": {"checkpoint": str(in_tmp_path / "adapter")}}
    resolved = resolve(recipe)
    assert resolved.recipe.merge.tolerance == 2e-2
    assert resolved.origins["merge.tolerance"].reason == "the base is in bfloat16"
    assert resolve({**recipe, "merge": {"tolerance": 0.5}}).recipe.merge.tolerance == 0.5
    assert resolved.estimate.memory_bytes > 4 * resolved.estimate.parameters
