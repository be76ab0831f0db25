"""A LoRA adapter on disk: a PEFT folder, and the record of the base it belongs to."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Beside PEFT's files: what its config has no place for. Others leave it alone.
BASE_RECORD = "base_model.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and what it says of its base.

    base: a folder or a name on the Hub. digest: of the base's weights when the adapter was made, if recorded.
    """

    folder: Path
    base: str
    digest: str | None
    in_4bit: bool
    task: str | None
    token_rows: dict[str, tuple[int, ...]]  # the rows of embeddings and head that it has trained, by module


def is_adapter(folder: str | Path) -> bool:
    """Tell whether a folder holds an adapter (and no whole model)."""
    path = Path(folder).expanduser()
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter(folder: str | Path, *, key: str = "adapter") -> Adapter:
    """Read what an adapter is and find its base, which may have moved along with it.

    UserError where the folder is no LoRA adapter, or where its base is not there.
    """
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file():
        what = "a whole model, with nothing to attach" if (path / "config.json").is_file() else f"without {CONFIG}"
        raise UserError(Problem(key, f"this folder is no adapter: it is {what}", value=folder))
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(Problem(key, f"its {CONFIG} is broken: {error}", value=folder)) from None
    if config.get("peft_type") != "LORA":
        raise UserError(Problem(key, f"it is an adapter of type {config.get('peft_type')}, not LoRA", value=folder))
    if not (path / WEIGHTS).is_file():
        raise UserError(Problem(key, f"this folder has no {WEIGHTS}", value=folder))
    record = _read_record(path)
    digest = record.get("digest")
    return Adapter(
        folder=path,
        base=_find_base(path, config.get("base_model_name_or_path"), digest, key),
        digest=digest,
        in_4bit=bool(record.get("load_in_4bit")),
        task=config.get("task_type"),
        token_rows=_token_rows(config),
    )


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / BASE_RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _token_rows(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    rows = config.get("trainable_token_indices") or {}
    return {name: tuple(ids) for name, ids in (rows if isinstance(rows, dict) else {"": rows}).items()}


def _find_base(folder: Path, name: str | None, digest: str | None, key: str) -> str:
    """Return the base's folder or Hub name."""
    if not name:
        fix = f"Write its base into {folder / CONFIG} as base_model_name_or_path."
        raise UserError(Problem(key, "this adapter does not say which model it belongs to", value=folder, fix=fix))
    if Path(name).expanduser().resolve() == folder.resolve():
        fix = f"Write its base into {folder / CONFIG} as base_model_name_or_path."
        raise UserError(Problem(key, "this adapter names itself as its base", value=folder, fix=fix))
    if _holds_model(Path(name).expanduser()):
        return str(Path(name).expanduser())
    for moved in _tails(folder.resolve(), Path(name)):
        if _holds_model(moved) and (digest is None or weights_digest(moved) == digest):
            return str(moved)
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if looks_local:
        why = f"the base that this adapter belongs to is not at {name}"
        fix = f"Put it there, or write where it is into {folder / CONFIG} as base_model_name_or_path."
        raise UserError(Problem(key, why, value=folder, fix=fix))
    return name


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / CONFIG).is_file()


def _tails(folder: Path, base: Path) -> Iterator[Path]:
    """Yield where a base may be now if adapter and base were moved together: the end of its path, seen from here."""
    for parent in folder.parents:
        for length in range(len(base.parts) - 1, 1, -1):
            yield parent.joinpath(*base.parts[-length:])


def weights_digest(folder: str | Path) -> str | None:
    """Return the SHA-256 of a folder's weights (of the digests of its files), or None where there are none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)) if files else None


@functools.lru_cache(maxsize=8)  # an adapter is saved many times, and a base may be large
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def save_adapter(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write a PeftModel's trained adapter, the record of its base, generation config and tokenizer.

    PEFT's own tools read the folder. Only the adapter that is trained is written: trainers may have added a
    frozen copy of it as their reference.
    """
    # The rows of new tokens are saved with the adapter; without False, PEFT asks the Hub for the base's config.
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form, with nothing filled in
    base = model.peft_config["default"].base_model_name_or_path
    in_4bit = bool(getattr(model.get_base_model(), "is_loaded_in_4bit", False))
    record = {"base_model": base, "digest": weights_digest(base) if base else None, "load_in_4bit": in_4bit}
    (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)  # the chat template's end token among it
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def require_base(adapter: Adapter, *, key: str = "adapter") -> None:
    """UserError where the base's weights are not those that the adapter was trained on."""
    if adapter.digest is None:
        return
    if weights_digest(adapter.base) not in (adapter.digest, None):
        why = f"the weights in {adapter.base} are not those it was trained on: their digest is another"
        fix = "Name the base that it was trained on as base_model_name_or_path in its adapter_config.json."
        raise UserError(Problem(key, why, value=adapter.folder, fix=fix))


def wrap(base: Any, config: Any) -> Any:
    """Return a model with the layers of an adapter, untrained, as a PeftModel."""
    from peft import get_peft_model
    from peft.utils.other import TrainableTokensWrapper

    with warnings.catch_warnings():
        # PEFT asks transformers by a name that is going away.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # GPT-2's layers hold their weights the other way round, which PEFT sees and says.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        model = get_peft_model(base, config)
    for module in model.modules():
        # TRL reads weight and bias of the head past its forward, and PEFT passes on the weight only.
        if isinstance(module, TrainableTokensWrapper) and getattr(module.original_module, "bias", None) is None:
            module.bias = None
    return model


def attach_adapter(base: Any, adapter: Adapter, *, key: str = "adapter") -> Any:
    """Return a loaded base with the adapter attached, a frozen PeftModel; its vocabulary grows to the adapter's.

    UserError, in words, where the two do not belong together.
    """
    from peft import PeftConfig

    require_base(adapter, key=key)
    _grow_vocabulary(base, adapter, key)
    config = PeftConfig.from_pretrained(adapter.folder)
    config.base_model_name_or_path = adapter.base  # it may have moved
    config.inference_mode = True
    try:
        model = wrap(base, config)
        loaded = model.load_adapter(str(adapter.folder), "default", is_trainable=False, torch_device="cpu")
    except (RuntimeError, ValueError, KeyError) as error:
        raise _mismatch(adapter, key, _shapes(error)) from None
    strangers = [name for name in loaded.unexpected_keys if not is_whole_end(name)]
    if strangers or loaded.missing_keys:
        names = [*strangers, *loaded.missing_keys]
        side = "has no place for" if strangers else "wants what the adapter lacks:"
        raise _mismatch(adapter, key, f"it {side} {names[0]}, {len(names)} in all")
    path = adapter.folder / "generation_config.json"
    if path.is_file():
        from transformers import GenerationConfig

        model.generation_config = base.generation_config = GenerationConfig.from_pretrained(adapter.folder)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(base.config, name, getattr(base.generation_config, name))
    return model.eval()


def _grow_vocabulary(base: Any, adapter: Adapter, key: str) -> None:
    """Give the base as many rows as the adapter was trained with; every new one must come with it."""
    rows = base.get_input_embeddings().weight.shape[0]
    whole = _saved_rows(adapter)
    trained = {row for ids in adapter.token_rows.values() for row in ids}
    wanted = whole or max([rows, *(row + 1 for row in trained)])
    if wanted == rows:
        return
    if not whole and not trained >= set(range(rows, wanted)):
        why = f"it has trained token {max(trained)}, and brings no rows for all tokens from {rows} on"
        raise _mismatch(adapter, key, why)
    base.resize_token_embeddings(wanted, mean_resizing=False)


def _saved_rows(adapter: Adapter) -> int | None:
    """Return the number of rows of embeddings or a head that the adapter brings whole, or None."""
    from safetensors import safe_open

    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            if is_whole_end(name):
                return file.get_slice(name).get_shape()[0]
    return None


def is_whole_end(name: str) -> bool:
    """Tell whether an adapter's weight is embeddings or a head, saved whole."""
    return name.endswith(".weight") and name.split(".")[-2] in (
        "embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings",
    )  # fmt: skip


def _shapes(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("size mismatch")), lines[0] if lines else repr(error))[:240]


def _mismatch(adapter: Adapter, key: str, why: str) -> UserError:
    fix = "Name the base that it was trained on as base_model_name_or_path in its adapter_config.json."
    text = f"it does not fit its base {adapter.base}: {why}"
    return UserError(Problem(key, text, value=adapter.folder, fix=fix))
