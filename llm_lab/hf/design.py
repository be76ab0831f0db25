"""A design as a Hugging Face-format config.json, which AutoConfig reads back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .load import config_of_parts, quiet_libraries
from .native import native_config


def write_design(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the config of a resolved recipe's parts into `folder` and return it.

    Native parts make a Llama, Mistral or Qwen3 config; others carry the code that reads them. The vocabulary
    is the tokenizer's where its size is known now, and is set again from it when training begins.
    """
    from llm_lab.plan.vocabulary import vocabulary_size

    quiet_libraries()
    size, _ = vocabulary_size(values.get("tokenizer"))
    config = config_of_parts(values["model"], size)
    native = native_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    (native if native is not None else config).save_pretrained(folder)
    return folder
