"""Save a model as a plain Hugging Face folder, native where the parts allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .native import native_config


def set_special_tokens(model: Any, tokenizer: Any) -> None:
    """Tell model and generation config the tokenizer's own ids; none is ever assumed."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    writes = getattr(model, "generation_config", None) is not None  # a classifier has none
    for key, value in ids.items():
        setattr(model.config, key, value)
        if writes:
            setattr(model.generation_config, key, value)
    if writes and tokenizer.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.eos_token_id


def to_native(model: Any) -> Any | None:
    """Return the same weights as LlamaForCausalLM (or Mistral, Qwen3), sharing memory, or None."""
    import torch
    from transformers import AutoModelForCausalLM

    if model.config.model_type != "llm_lab":
        return None
    config = native_config(model.config)
    if config is None:
        return None
    if model.config.hidden_dropout:
        config.hidden_dropout = model.config.hidden_dropout
    with torch.device("meta"):
        native = AutoModelForCausalLM.from_config(config)
    native.load_state_dict(model.state_dict(), strict=True, assign=True)
    native.tie_weights()
    native.generation_config = model.generation_config
    return native


def save_model(model: Any, folder: Path, tokenizer: Any = None, state_dict: dict | None = None) -> None:
    """Write config, weights (safetensors), generation config and tokenizer into `folder`.

    A combination of parts that no common architecture has carries its own code. Of a PeftModel, the adapter.
    """
    if hasattr(model, "peft_config"):
        from .adapter import save_adapter

        return save_adapter(model, folder, tokenizer)
    native = to_native(model) if state_dict is None else None
    (native if native is not None else model).save_pretrained(folder, state_dict=state_dict)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
