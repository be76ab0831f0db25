"""Load sequence classifiers from disk or the Hub, with their trained head or with a new head on a language model."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.hf.adapter import attach_adapter, is_adapter, read_adapter
from llm_lab.hf.configs import read_config
from llm_lab.hf.hub import hub_problem
from llm_lab.hf.load import first_names, kernel_options, load_model, quantization_4bit, require_4bit, weights_left_out
from llm_lab.hf.save import to_native

# Encoders without a classification head have no pooler either.
HEADS = frozenset({"score", "classifier", "classification_head", "pooler"})


def is_encoder(config: Any) -> bool:
    """Return whether a classifier is bidirectional, like BERT and DeBERTa: it reads prompt and answer as a pair."""
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
) -> Any:
    """Load a sequence classifier in eval mode; a LoRA adapter is merged into its base.

    new_head: use one label, with a new head if the checkpoint has no suitable one (a language model has none). Without
    new_head, such a checkpoint is refused, because transformers would score with random weights. load_in_4bit: load the
    frozen base of QLoRA, on CUDA only. Raises UserError if it can't be loaded.
    """
    options: dict[str, Any] = kernel_options(attn_implementation)
    if load_in_4bit:
        require_4bit(device)
        if is_adapter(name):
            why = "an adapter can't be merged into a base in 4 bits"
            fix = f"First run: llm-lab merge {shlex.quote(str(name))}"
            raise UserError(Problem("lora.load_in_4bit", why, value=True, fix=fix))
        options |= {"quantization_config": quantization_4bit(), "device_map": device}
    if is_gguf(name):
        if not new_head:
            raise _not_a_reward_model(str(name), key)
        model = add_head(load_model(name, dtype=dtype, key=key, load_in_4bit=load_in_4bit))
    elif is_adapter(name):
        model = _load_adapter(Path(name), dtype=dtype, new_head=new_head, key=key, options=options)
    else:
        model = _load_whole(str(name), dtype=dtype, new_head=new_head, key=key, options=options)
    return _with_exact_scores(model if load_in_4bit else model.to(device)).eval()


def _with_exact_scores(model: Any) -> Any:
    """Compute the score in float32, whatever the precision of the model: in bf16 the next value after 10.0 is 10.06."""
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
            head.__class__ = ExactLinear  # names and weights stay the same, so saving is not affected
    return model


def _load_whole(name: str, *, dtype: str, new_head: bool, key: str, options: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    config = read_config(name, key=key)
    if config.is_encoder_decoder:
        raise UserError(
            Problem(key, f"an encoder-decoder ({config.model_type}) is not supported as a reward model", value=name)
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
        raise UserError(Problem(key, f"weights are missing: {', '.join(sorted(missing)[:3])}", value=name))
    # Weights outside the backbone are heads for other tasks.
    backbone = f"{model.base_model_prefix}."
    left_out = [weight for weight in weights_left_out(model, loaded["unexpected_keys"]) if weight.startswith(backbone)]
    if left_out:
        raise UserError(
            Problem(key, f"its config leaves out weights of the checkpoint: {first_names(left_out)}", value=name)
        )
    if loaded["missing_keys"] and not new_head:
        raise _not_a_reward_model(name, key)
    return model


def _load_adapter(folder: Path, *, dtype: str, new_head: bool, key: str, options: Mapping[str, Any]) -> Any:
    import torch

    adapter = read_adapter(folder, key=key)
    if adapter.task == "SEQ_CLS":
        # In float32 until merged: in bf16, the small changes of an adapter would be lost.
        base = load_classifier(adapter.base, new_head=True, key=key, **options)
        model = attach_adapter(base, adapter, key=key).merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
        model.requires_grad_(True)  # PEFT leaves the base frozen
    elif new_head:
        model = add_head(load_model(folder, dtype=dtype, merge=True, key=key, **options))
    else:
        raise _not_a_reward_model(str(folder), key)
    # An adapter trained on this model records this folder as its base.
    model.config._name_or_path = model.name_or_path = str(folder)
    return model


def add_head(causal: Any) -> Any:
    """Return the backbone of a causal LM with a new score head of one label; a native class if its parts allow."""
    from transformers import AutoModelForSequenceClassification

    native = to_native(causal)
    causal = causal if native is None else native
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    backbone = getattr(causal, causal.base_model_prefix)
    getattr(model, model.base_model_prefix).load_state_dict(backbone.state_dict())
    return model.to(causal.device)


def _not_a_reward_model(name: str, key: str) -> UserError:
    why = "this is a language model and not a reward model: it has no trained score head"
    fix = "Train a reward model from it with `stage: reward`, or choose another."
    return UserError(Problem(key, why, value=name, fix=fix))
