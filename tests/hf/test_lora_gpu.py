"""QLoRA: an adapter on a 4-bit base. Requires a CUDA GPU and bitsandbytes."""

import importlib.util

import pytest
import torch
from support.adapters import ids, lora, save_base, with_chat_tokens

from llm_lab.estimate.machine import find_machine
from llm_lab.hf.adapter import read_adapter
from llm_lab.hf.load import load_model
from llm_lab.hf.lora_layers import attach_lora, describe_trainable
from llm_lab.hf.merging import merge_adapter
from llm_lab.hf.save import save_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_machine().cuda_problem is not None, reason="no CUDA GPU that does bf16"),
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]


def test_an_adapter_trains_on_a_4_bit_base_and_merges_into_the_full_base(tmp_path):
    parts = {"hidden_size": 64, "intermediate_size": 128}
    save_base(tmp_path / "base", **parts)
    base, tokenizer = with_chat_tokens(
        load_model(tmp_path / "base", device="cuda", dtype="bfloat16", load_in_4bit=True)
    )
    model = attach_lora(base, lora(), seed=1).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    frozen = {type(p).__name__ for name, p in model.named_parameters() if "base_layer.weight" in name and "lay" in name}
    assert "Params4bit" in frozen
    full = load_model(tmp_path / "base")
    assert describe_trainable(model).total > sum(parameter.numel() for parameter in full.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = ids(model, 16).cuda()
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    save_model(model, tmp_path / "adapter", tokenizer)
    assert read_adapter(tmp_path / "adapter").in_4bit
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.relative_difference < 1e-4
