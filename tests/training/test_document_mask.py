"""With train.document_mask, a document in a row can't see earlier documents, in training and in evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, write_text
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MptConfig,
    OPTConfig,
    Qwen3NextConfig,
)

from llm_lab.errors import UserError
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.runner import load, run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loss import total_loss
from llm_lab.training.pretrain_trainer import document_positions, mask_documents

EOS = 63
SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def lab(**parts) -> LabForCausalLM:
    torch.manual_seed(0)
    return LabForCausalLM(LabConfig(**SHAPE, num_key_value_heads=2, max_position_embeddings=64, **parts)).eval()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=64, num_key_value_heads=2)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


MODELS = {
    "rope": lambda: lab(position_embedding="rope"),
    "yarn": lambda: lab(position_embedding="yarn", rope_parameters={"factor": 2.0}),
    "alibi": lambda: lab(position_embedding="alibi"),
    "sinusoidal": lambda: lab(position_embedding="sinusoidal"),
    "sliding window": lambda: lab(position_embedding="rope", sliding_window=4),
    "alibi with a sliding window": lambda: lab(position_embedding="alibi", sliding_window=4),
    "Llama": llama,
    "GPT-2": gpt2,
}


def rows() -> torch.Tensor:
    """Two rows with documents of different lengths; one starts inside a document, one with a separator."""
    ids = torch.randint(0, EOS, (2, 24), generator=torch.Generator().manual_seed(1))
    ids[0, [9, 17]] = EOS
    ids[1, [0, 13]] = EOS
    return ids


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_positions_restart_at_the_separator():
    ids = torch.tensor([[5, 6, EOS, 7, 8, EOS, EOS, 1], [EOS, 1, 2, 3, 4, 5, 6, 7]])
    expected = [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert document_positions(ids, EOS).tolist() == expected


@torch.no_grad()
def test_a_document_does_not_influence_the_next_one(model):
    ids = rows()
    changed = ids.clone()
    changed[0, :9], changed[1, 1:13] = (ids[0, :9] + 7) % EOS, (ids[1, 1:13] + 7) % EOS
    open_before, open_after = (model(input_ids=i, use_cache=False).logits for i in (ids, changed))
    assert not torch.allclose(open_before[0, 9:], open_after[0, 9:], atol=1e-4), "without the mask they see each other"
    mask_documents(model, EOS)
    before, after = (model(input_ids=i, use_cache=False).logits for i in (ids, changed))
    assert torch.allclose(before[0, 9:], after[0, 9:], atol=1e-6)
    assert torch.allclose(before[1, 13:], after[1, 13:], atol=1e-6)
    assert not torch.allclose(before[0, :9], after[0, :9], atol=1e-4)


@torch.no_grad()
def test_a_document_in_a_row_has_the_logits_of_the_document_alone(model):
    ids = rows()
    alone = model(input_ids=ids[:1, 9:17], use_cache=False).logits
    mask_documents(model, EOS)
    in_its_row = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(in_its_row[0, 9:17], alone[0], atol=2e-5)
    assert torch.allclose(model(input_ids=ids[:1, 9:17], use_cache=False).logits, alone, atol=1e-6)


@torch.no_grad()
def test_the_first_token_is_predicted_from_the_separator_alone():
    model = llama()
    opened = model(input_ids=torch.tensor([[EOS]]), use_cache=False).logits[0, 0]
    mask_documents(model, EOS)
    logits = model(input_ids=rows(), use_cache=False).logits
    assert torch.allclose(logits[0, 9], opened, atol=1e-5)
    assert torch.allclose(logits[1, 13], opened, atol=1e-5)


def test_generation_is_not_masked():
    model = llama()
    prompt = torch.tensor([[3, EOS, 5, 6]])
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    expected = model.generate(prompt, **settings)
    mask_documents(model, EOS)
    assert torch.equal(model.generate(prompt, **settings), expected)


@pytest.mark.parametrize("name", ["BLOOM", "Mamba", "OPT", "Falcon", "MPT", "LFM2", "Qwen3-Next"])
def test_a_model_that_cannot_separate_documents_is_refused(name):
    """Some ignore positions, others have convolutions or states that run across a whole row."""
    experts = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 2}
    linear = {f"linear_{part}": 2 for part in ("num_key_heads", "num_value_heads")}
    linear |= {f"linear_{part}": 8 for part in ("key_head_dim", "value_head_dim")}
    config = {
        "BLOOM": lambda: BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4),
        "Mamba": lambda: MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4),
        "OPT": lambda: OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=64),
        "Falcon": lambda: FalconConfig(**SHAPE, alibi=True),
        "MPT": lambda: MptConfig(vocab_size=64, d_model=32, n_heads=4, n_layers=1, max_seq_len=64),
        "LFM2": lambda: Lfm2Config(
            **SHAPE, num_key_value_heads=2, intermediate_size=32, layer_types=["conv", "full_attention"]
        ),
        "Qwen3-Next": lambda: Qwen3NextConfig(
            **SHAPE, **experts, **linear, head_dim=8, num_experts_per_tok=1, intermediate_size=32
        ),
    }[name]()
    with pytest.raises(UserError, match="documents can still see each other"):
        mask_documents(AutoModelForCausalLM.from_config(config), EOS)


def test_evaluation_uses_the_same_mask(in_tmp_path):
    words = Path(write_text("words.txt", 200)).read_text().splitlines()
    Path("rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in words))
    raw = tiny_recipe("rows.jsonl", **{"train.document_mask": True, "train.max_length": 32})
    facts = run(raw)
    model, tokenizer = load(facts["path"], device="cpu")
    eos = tokenizer.eos_token_id
    starts = np.cumsum([0, *map(len, words)])[:-1]
    kept = [text for text, start in zip(words, starts, strict=True) if start >= int(sum(map(len, words)) * 0.9)]
    held_out = [token for text in kept for token in [*text.encode(), eos]]
    nats, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(held_out) - 1, 32):
            row = held_out[start : start + 33]
            begin = 0
            for at in [j for j in range(1, len(row) - 1) if row[j] == eos] + [len(row) - 1]:
                part = torch.tensor([row[begin:at]])
                logits = model(input_ids=part, use_cache=False).logits[0]
                targets = torch.tensor(row[begin + 1 : at + 1])
                nats += F.cross_entropy(logits, targets, reduction="sum").item()
                count += len(targets)
                begin = at
    measured = RunFolder(Path(facts["path"])).metrics()[-1]["eval_loss"]
    assert count == len(held_out) - 1
    assert measured == pytest.approx(nats / count, rel=1e-6)
    assert measured != pytest.approx(_without_mask(model, held_out), rel=1e-5)


def _without_mask(model, tokens) -> float:
    total = total_loss(model, [np.array(tokens)], max_length=32, rows=4, device="cpu", dtype="float32")
    return total.nats / total.tokens


@pytest.mark.slow
def test_a_compiled_run_is_masked_too_even_after_one_without_masks_in_the_same_process(in_tmp_path):
    words = Path(write_text("words.txt", 200)).read_text().splitlines()
    Path("rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in words))
    found = []
    for name, mask, compiled in (("plain", False, True), ("masked", True, False), ("both", True, True)):
        changes = {"train.document_mask": mask, "train.compile": compiled, "train.max_steps": 5}
        folder = RunFolder(Path(run(tiny_recipe("rows.jsonl", name=name, **changes))["path"]))
        found.append([row["loss"] for row in folder.metrics() if "loss" in row])
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-5)
