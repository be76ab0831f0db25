"""Models from the Hub that are on this machine: their folder in the cache, and their files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .adapter_base import CONFIG, SETTINGS


def cached_folder(name: str) -> Path | None:
    """Return the folder in the Hub's cache with the files of a model, or None if it was never downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(name, file) for file in ("config.json", CONFIG)]
    except HFValidationError:  # a path, or anything else that can't be a name on the Hub
        return None
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def cached_files(name: str) -> dict[str, str]:
    """Return {file: its id on the Hub} for the weights, config and tokenizer of a model in the cache.

    The cache stores each file under its id and links to it.
    """
    folder = cached_folder(name)
    files = [file for file in folder.iterdir() if file.is_symlink()] if folder else []
    return {file.name: Path(os.readlink(file)).name for file in files if is_model_file(file.name)}


def is_model_file(name: str) -> bool:
    """Return whether a file affects what a model computes, unlike a README."""
    return name.endswith(".safetensors") or name in SETTINGS


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the files of a model that differ between two results of `cached_files` or `current_files`.

    A file that only one of them has is ignored, as it may not have been downloaded; but weight files with other names
    have changed.
    """
    changed = {name for name in before.keys() & now.keys() if before[name] != now[name]}
    weights = [{name for name in files if name.endswith(".safetensors")} for files in (before, now)]
    return sorted(changed | (weights[0] ^ weights[1] if all(weights) else set()))


def cached_language_models() -> list[str]:
    """Return the names of the causal language models, and adapters, in the Hub's cache."""
    from huggingface_hub import constants

    from .adapter_base import read_object

    found = []
    for place in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = place.name.removeprefix("models--").replace("--", "/")
        folder = cached_folder(name)
        if folder is None:
            continue
        kinds = (read_object(folder / "config.json") or {}).get("architectures") or ["adapter"]
        if any(part in str(kinds) for part in ("CausalLM", "LMHead", "adapter")):
            found.append(name)
    return found
