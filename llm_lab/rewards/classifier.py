"""Sequence classifiers from disk or the Hub: with the head they were trained with, or a new one on a language model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.hf.adapter import attach_adapter, is_adapter, read_adapter
from llm_lab.hf.load import load_model, quantization_4bit, read_config, require_4bit
from llm_lab.hf.save import to_native
from llm_lab.hf.tokenizers import hub_problem

# Encoders before classification have no pooler either.
HEADS = frozenset({"score", "classifier", "classification_head", "pooler"})


def is_encoder(config: Any) -> bool:
    """Tell whether a classifier reads both ways, as BERT and DeBERTa do: its prompts and answers go in as pairs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def load_classifier(
    name: str | Path,
    *,
    dtype: str = "float32",
    new_head: bool = False,
    device: str = "cpu",
    load_in_4bit: bool = False,
    key: str = "rewards.model",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a sequence classifier in eval mode; a LoRA adapter comes merged into its base.

    new_head: one label, and a new head where the checkpoint has none that fits (a language model has none). Without
    it such a checkpoint is refused: the library would score with random weights. load_in_4bit: as QLoRA's frozen
    base, on CUDA. UserError where it can't be loaded.
    """
    options = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    options = {option: value for option, value in options.items() if value}
    if load_in_4bit:
        require_4bit(device)
        if is_adapter(name):
            why, fix = "an adapter can't be put into a base of 4 bits", f"First: llm-lab merge {name}"
            raise UserError(Problem("lora.load_in_4bit", why, value=True, fix=fix))
        options |= {"quantization_config": quantization_4bit(), "device_map": device}
    if is_adapter(name):
        model = _load_adapter(Path(name), dtype=dtype, new_head=new_head, key=key, options=options)
    else:
        model = _load_whole(str(name), dtype=dtype, new_head=new_head, key=key, options=options)
    return _with_exact_scores(model if load_in_4bit else model.to(device)).eval()


def _with_exact_scores(model: Any) -> Any:
    """Compute the score itself in float32, whatever the precision around it: in bf16, 10.0 is followed by 10.06."""
    from torch import autocast, nn
    from torch.nn import functional as F

    class ExactLinear(nn.Linear):
        def forward(self, hidden: Any) -> Any:
            with autocast(hidden.device.type, enabled=False):
                bias = None if self.bias is None else self.bias.float()
                return F.linear(hidden.float(), self.weight.float(), bias)

    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if type(head) is nn.Linear:
            head.__class__ = ExactLinear  # names and weights stay, and so does what is saved
    return model


def _load_whole(name: str, *, dtype: str, new_head: bool, key: str, options: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    config = read_config(name, key=key, trust_remote_code=options.get("trust_remote_code", False))
    if config.is_encoder_decoder:
        raise UserError(
            Problem(key, f"an encoder-decoder ({config.model_type}) can't be a reward model here", value=name)
        )
    if new_head:
        config.num_labels = 1
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=new_head,
            **options,
        )
    except Exception as error:
        raise UserError(hub_problem(error, key, name, "reward model")) from None
    missing = [parameter for parameter in loaded["missing_keys"] if HEADS.isdisjoint(parameter.split("."))]
    if missing:
        raise UserError(Problem(key, f"weights are missing from it: {', '.join(sorted(missing)[:3])}", value=name))
    if loaded["missing_keys"] and not new_head:
        raise _no_judge(name, key)
    return model


def _load_adapter(folder: Path, *, dtype: str, new_head: bool, key: str, options: Mapping[str, Any]) -> Any:
    import torch

    adapter = read_adapter(folder, key=key)
    if adapter.task == "SEQ_CLS":
        # In float32 until it is merged: an adapter's small differences would be lost in bf16.
        base = load_classifier(adapter.base, new_head=True, key=key, **options)
        model = attach_adapter(base, adapter, key=key).merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
        model.requires_grad_(True)  # PEFT leaves the base frozen
    elif new_head:
        model = add_head(load_model(folder, dtype=dtype, merge=True, key=key, **options))
    else:
        raise _no_judge(str(folder), key)
    # So that an adapter trained on it finds its base again.
    model.config._name_or_path = model.name_or_path = str(folder)
    return model


def add_head(causal: Any) -> Any:
    """Return a causal LM's backbone with a new score head of one label, native where its parts are."""
    from transformers import AutoModelForSequenceClassification

    native = to_native(causal)
    causal = causal if native is None else native
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    backbone = getattr(causal, causal.base_model_prefix)
    getattr(model, model.base_model_prefix).load_state_dict(backbone.state_dict())
    return model.to(causal.device)


def _no_judge(name: str, key: str) -> UserError:
    why = "this is a language model, no reward model: it has no trained head that gives a score"
    fix = "Train a reward model from it with `stage: reward`, or name one."
    return UserError(Problem(key, why, value=name, fix=fix))
