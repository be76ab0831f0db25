"""A design as a Hugging Face-format config.json, which AutoConfig reads back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .load import config_of_parts, quiet_libraries
from .native import native_config
from .tokenizers import load_tokenizer, make_byte_tokenizer


def write_design(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the config of a resolved recipe's parts into `folder` and return it.

    Native parts make a Llama, Mistral or Qwen3 config; others carry the code that reads them. The vocabulary
    is the tokenizer's; that of a BPE still to be trained is set again when training begins.
    """
    # Registers the code that save_pretrained writes beside a config of ours.
    import llm_lab.model.modeling_lab  # noqa: F401

    quiet_libraries()
    ours = config_of_parts(values["model"], _vocabulary_size(values["tokenizer"]))
    native = native_config(ours)
    config = native if native is not None else ours
    config.lab_tokenizer = values["tokenizer"]  # so that a pretraining of this design takes the one it was made for
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    return folder


def _vocabulary_size(tokenizer: Any) -> int:
    if isinstance(tokenizer, Mapping):
        return tokenizer["bpe"]
    return len(make_byte_tokenizer() if tokenizer == "bytes" else load_tokenizer(tokenizer))
