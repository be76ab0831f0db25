"""Find the base model of a LoRA adapter, without importing torch."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .gguf_header import is_gguf

CONFIG = "adapter_config.json"
# Our own file next to PEFT's, for facts that PEFT's config has no key for. Other tools ignore it.
BASE_RECORD = "base_model.json"
# How much a merge may change logits, relative to the largest logit. In float32 only the order of sums differs. bf16
# weights have 8 significant bits, so each has an error of up to 2^-9 (0.2 %), and over dozens of layers these add up
# to a percent or two; fp16 has 11 bits.
MERGE_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 3e-3}


def read_adapter_json(folder: str | Path) -> dict[str, Any] | None:
    """Read the adapter_config.json of a LoRA adapter's folder (or run), or None."""
    return read_object(adapter_folder(folder) / CONFIG)


def adapter_folder(folder: str | Path) -> Path:
    """Return the folder of the adapter's files: the folder itself, or `model/` or the newest checkpoint of a run."""
    path = Path(folder).expanduser()
    return next((place for place in places_of_model(path) if (place / CONFIG).is_file()), path)


def places_of_model(folder: Path) -> Iterator[Path]:
    """Yield where the config of a model may be: the folder itself, `model/` of a run, its checkpoints, newest first.

    A run that has not ended yet has only checkpoints.
    """
    yield folder
    yield folder / "model"
    steps = {int(at.name.rpartition("-")[2]): at for at in folder.glob("steps/checkpoint-*") if at.name[11:].isdigit()}
    yield from (steps[step] for step in sorted(steps, reverse=True))


def read_object(file: Path) -> dict[str, Any] | None:
    """Read a JSON file that holds an object; None for anything else.

    Keys of model and adapter configs that we use are left out if their value has the wrong type. Loading such a model
    is an error.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return {key: value for key, value in found.items() if _is_sensible(key, value)} if isinstance(found, dict) else None


_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "n_positions"),
)
_LARGEST_SIZE = 2**40  # a larger number is a mistake or an attack
_TEXTS = ("model_type", "activation", "norm", "base_model_name_or_path", "peft_type", "task_type")
_GROUPS = ("rope_parameters", "rope_scaling")


def _is_sensible(key: str, value: Any) -> bool:
    """Return whether a value has its key's type."""
    if key in _SIZES:
        return value is None or (_is_count(value) and value > 0)
    if key in _TEXTS:
        return isinstance(value, str | None)
    if key in _GROUPS:
        return isinstance(value, dict | None)
    if key == "target_modules" and isinstance(value, str):
        return True
    if key in ("architectures", "target_modules"):
        return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    if key == "trainable_token_indices":
        lists = value.values() if isinstance(value, dict) else [value or []]
        return all(isinstance(ids, list) and all(map(_is_count, ids)) for ids in lists)
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_SIZE


def find_base(folder: str | Path) -> str | None:
    """Return the base of an adapter (or of a run's adapter): a folder, or a name on the Hub.

    The stored path is tried first. If nothing is there, the base may have moved together with the adapter, or the
    adapter's run may name it as its parent. Its weights must have the recorded digest; without one, only paths of two
    or more parts are tried. None if it is not found, not named, or the adapter itself.
    """
    path = adapter_folder(folder)
    name = (read_object(path / CONFIG) or {}).get("base_model_name_or_path")
    if not name or Path(name).expanduser().resolve() == path.resolve():
        return None
    stored = Path(name).expanduser()
    if _holds_model(stored):
        return str(stored)
    digest = (read_object(path / BASE_RECORD) or {}).get("digest")
    is_local = stored.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_local or digest is not None:
        for place in _places(path, stored, digest):
            if _holds_model(place) and (digest is None or weights_digest(place) == digest):
                return str(place)
    return None if is_local or digest is not None else name  # a name on the Hub has no digest


def _places(adapter: Path, stored: Path, digest: str | None) -> Iterator[Path]:
    """Yield the places where a base may be if it is not at its stored path."""
    yield from places_after_move(adapter, stored, shortest=2 if digest is None else 1)
    if digest is None:
        return  # a parent without a digest could be any model
    for run in (adapter.resolve().parent, adapter.resolve().parent.parent):  # of model/, steps/checkpoint-N/
        parent = (read_object(run / "run.json") or {}).get("parent")
        if isinstance(parent, dict) and parent.get("path"):
            recorded = Path(parent["path"]).expanduser()
            yield recorded.resolve()
            yield from places_after_move(run, recorded, shortest=1)


def places_after_move(folder: Path, stored: Path, *, shortest: int = 2) -> Iterator[Path]:
    """Yield where `stored` may be if it was moved together with a folder: the end of its path, from each parent.

    shortest: the smallest number of path parts to try. A single name (model) could be any folder of that name, so use 1
    only if a digest is compared.
    """
    for parent in folder.resolve().parents:
        for length in range(len(stored.parts), shortest - 1, -1):
            yield parent.joinpath(*stored.parts[-length:])


def base_circle(folder: str | Path) -> list[str] | None:
    """Return the names of adapters whose bases form a cycle, the first one again at the end; None without a cycle."""
    names: dict[Path, str] = {}
    base: str | None = str(folder)
    while base is not None and (path := adapter_folder(base)).is_dir() and (path / CONFIG).is_file():
        here = path.resolve()
        if here in names:
            circle = list(names.values())[list(names).index(here) :]
            return [*circle, circle[0]]
        names[here] = str(path)
        base = find_base(path)
    return None


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / CONFIG).is_file() or is_gguf(folder)


def weights_digest(folder: str | Path) -> str | None:
    """Return the SHA-256 over the digests of a folder's safetensors files (or of a GGUF file); None if it has none."""
    files = [Path(folder)] if is_gguf(folder) else sorted(Path(folder).glob("*.safetensors"))
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)) if files else None


@functools.lru_cache(maxsize=8)  # an adapter is saved often, and its base may be large
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


# Files that, in addition to the weights, decide what a model computes and how it tokenizes text.
SETTINGS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
)


def settings_digest(folder: str | Path) -> str | None:
    """Return the SHA-256 over the config and tokenizer files of a model, or None if it has none."""
    files = [file for name in SETTINGS if (file := Path(folder) / name).is_file()]
    parts = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None
