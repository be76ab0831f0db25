"""Read, save and attach LoRA adapters: a PEFT folder plus a record of the base model."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import BASE_RECORD, CONFIG, base_circle, find_base, read_object, weights_digest
from llm_lab.estimate.cached_models import cached_files, changed_files
from llm_lab.limits import time_limit

from .hub import files_of
from .tokenizers import save_tokenizer

WEIGHTS = "adapter_model.safetensors"
PATTERN_SECONDS = 5
# Keys of an adapter's config that name modules to import or files to unpickle. Only training reads them.
_NAMES_CODE = ("megatron_config", "megatron_core", "corda_config", "lora_ga_config", "eva_config", "loftq_config")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder and facts about its base.

    base: a folder or a Hub name. digest: digest of the base's weights when the adapter was trained, if recorded.
    files: {file: its id on the Hub} of a base from the Hub.
    """

    folder: Path
    base: str
    digest: str | None
    files: dict[str, str]
    in_4bit: bool
    task: str | None
    token_rows: dict[str, tuple[int, ...]]  # {module: its trained rows}, for embeddings and head


def is_adapter(folder: str | Path) -> bool:
    """Return whether a folder contains an adapter (and not a full model)."""
    path = Path(folder).expanduser()
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter(folder: str | Path, *, key: str = "adapter") -> Adapter:
    """Read an adapter folder and find its base, also if both were moved together.

    Raises UserError if the folder is not a LoRA adapter or its base does not exist.
    """
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file():
        what = "it is a full model" if (path / "config.json").is_file() else f"it has no {CONFIG}"
        raise UserError(Problem(key, f"this folder is not an adapter: {what}", value=folder))
    config = read_object(path / CONFIG)
    if config is None:
        raise UserError(Problem(key, f"its {CONFIG} is not a JSON object", value=folder))
    if config.get("peft_type") != "LORA":
        raise UserError(
            Problem(key, f"adapter type {config.get('peft_type')} is not supported, only LoRA", value=folder)
        )
    if config.get("alora_invocation_tokens") is not None:
        # PEFT looks for the invocation tokens in the tokens of one call: with a cache, it would not find them again.
        why = "activated LoRA, which works only after certain tokens of the prompt, is not supported"
        raise UserError(Problem(key, why, value=folder, fix="Use an ordinary LoRA adapter."))
    if not (path / WEIGHTS).is_file():
        raise _no_weights(path, key)
    record = read_object(path / BASE_RECORD) or {}
    with files_of(folder, key=key, what="adapter"):
        return Adapter(
            folder=path,
            base=_require_named_base(path, config.get("base_model_name_or_path"), key),
            digest=record.get("digest"),
            files=record.get("files") or {},
            in_4bit=bool(record.get("load_in_4bit")),
            task=config.get("task_type"),
            token_rows=_token_rows(config),
        )


def _no_weights(folder: Path, key: str) -> UserError:
    old = folder / "adapter_model.bin"
    if not old.is_file():
        return UserError(Problem(key, f"this folder has no {WEIGHTS}", value=folder))
    why = f"its weights are in {old.name}, a pickle, which can run code when it is read"
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"save_file(torch.load({str(old)!r}, weights_only=True), {str(folder / WEIGHTS)!r})"
    )
    return UserError(Problem(key, why, value=folder, fix=f'Convert it without running code: python -c "{code}"'))


def _token_rows(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    rows = config.get("trainable_token_indices") or {}
    return {name: tuple(ids) for name, ids in (rows if isinstance(rows, dict) else {"": rows}).items()}


def _require_named_base(folder: Path, name: str | None, key: str) -> str:
    """Return the base's folder or Hub name; UserError if it is not named or not found."""
    if not name:
        fix = f"Set base_model_name_or_path in {folder / CONFIG}."
        raise UserError(Problem(key, "this adapter does not name its base model", value=folder, fix=fix))
    if Path(name).expanduser().resolve() == folder.resolve():
        fix = f"Set base_model_name_or_path in {folder / CONFIG}."
        raise UserError(Problem(key, "this adapter names itself as its base model", value=folder, fix=fix))
    if circle := base_circle(folder):
        why = f"it is, through other adapters, its own base model: {' -> '.join(circle)}"
        fix = "Set base_model_name_or_path in one of their adapter_config.json to the model that it was trained on."
        raise UserError(Problem(key, why, value=folder, fix=fix))
    base = find_base(folder)
    if base is None:
        why = f"the base model of this adapter does not exist: {name}"
        fix = f"Restore it, or set base_model_name_or_path in {folder / CONFIG} to its new path."
        raise UserError(Problem(key, why, value=folder, fix=fix))
    return base


def save_adapter(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write the trained adapter of a PeftModel, the record of its base, the generation config and the tokenizer.

    PEFT can load the folder. Only the trained adapter is written: trainers may have added a frozen copy of it as
    the reference model.
    """
    # The rows of new tokens are saved with the adapter. Without False, PEFT asks the Hub for the base's config.
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty template
    base = model.peft_config["default"].base_model_name_or_path
    in_4bit = bool(getattr(model.get_base_model(), "is_loaded_in_4bit", False))
    record = {"base_model": base, "digest": weights_digest(base) if base else None, "load_in_4bit": in_4bit}
    if base and not Path(base).exists():
        record["files"] = cached_files(base)
    (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)  # with the end-of-turn token of the chat template
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def require_base(adapter: Adapter, *, key: str = "adapter") -> None:
    """Raise UserError if the base's weights are not the ones that the adapter was trained on."""
    if not Path(adapter.base).exists() and (changed := changed_files(adapter.files, cached_files(adapter.base))):
        why = f"its base {adapter.base} is not the one that it was trained on: {', '.join(changed[:3])} changed"
        raise UserError(Problem(key, why, value=adapter.folder, fix="Train it again on the current base."))
    if adapter.digest is None:
        return
    if weights_digest(adapter.base) not in (adapter.digest, None):
        why = f"the weights in {adapter.base} are not the ones it was trained on (different digest)"
        fix = "Set base_model_name_or_path in its adapter_config.json to the base that it was trained on."
        raise UserError(Problem(key, why, value=adapter.folder, fix=fix))


def make_peft_model(base: Any, config: Any) -> Any:
    """Return a PeftModel: the base with the layers of an adapter, not yet trained."""
    from peft import get_peft_model
    from peft.utils.other import TrainableTokensWrapper

    with warnings.catch_warnings():
        # PEFT uses a deprecated name in transformers.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # GPT-2's layers store transposed weights; PEFT handles this, with a warning.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        model = get_peft_model(base, config)
    for module in model.modules():
        # TRL reads weight and bias of the head directly, but PEFT's wrapper has only the weight.
        if isinstance(module, TrainableTokensWrapper) and getattr(module.original_module, "bias", None) is None:
            module.bias = None
    return model


def attach_adapter(base: Any, adapter: Adapter, *, key: str = "adapter") -> Any:
    """Return a loaded base with the adapter attached, as a frozen PeftModel; its vocabulary grows if needed.

    Raises UserError if adapter and base do not match.
    """
    from peft import PeftConfig

    require_base(adapter, key=key)
    _grow_vocabulary(base, adapter, key)
    config = PeftConfig.from_pretrained(adapter.folder)
    config.base_model_name_or_path = adapter.base  # the base may have been moved
    config.inference_mode = True
    for name in _NAMES_CODE:
        if hasattr(config, name):
            setattr(config, name, None)
    _require_quick_patterns(base, config, adapter, key)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # reported as an error below
            warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")  # an error when it is merged
            model = make_peft_model(base, config)
            loaded = model.load_adapter(str(adapter.folder), "default", is_trainable=False, torch_device="cpu")
    except (RuntimeError, ValueError, KeyError) as error:
        raise _mismatch(adapter, key, _shapes(error)) from None
    unexpected = [name for name in loaded.unexpected_keys if not is_full_matrix(name)]
    if unexpected or loaded.missing_keys:
        names = [*unexpected, *loaded.missing_keys]
        what = "the base has no layer for" if unexpected else "the adapter is missing"
        raise _mismatch(adapter, key, f"{what} {names[0]} ({len(names)} in total)")
    path = adapter.folder / "generation_config.json"
    if path.is_file():
        from transformers import GenerationConfig

        model.generation_config = base.generation_config = GenerationConfig.from_pretrained(adapter.folder)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(base.config, name, getattr(base.generation_config, name))
    return model.eval()


def merge_into_base(model: Any, adapter: Adapter, *, key: str = "adapter") -> Any:
    """Return the base of a PeftModel with its adapter merged in. Raises UserError if PEFT can't merge it."""
    if model.peft_config["default"].lora_bias and any(
        getattr(layer, "bias", None) is None for layer in _adapted_layers(model)
    ):
        why = "it has biases of its own (lora_bias), and layers of its base have none to add them to"
        fix = "Use the adapter without merging, or train it again with lora_bias false."
        raise UserError(Problem(key, f"it can't be merged: {why}", value=adapter.folder, fix=fix))
    return model.merge_and_unload(safe_merge=True)


def _adapted_layers(model: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module.get_base_layer() for module in model.modules() if isinstance(module, LoraLayer))


def _require_quick_patterns(base: Any, config: Any, adapter: Adapter, key: str) -> None:
    """Raise UserError if a regular expression of an adapter's config is broken or takes too long on the base's layers.

    PEFT matches it against the name of every layer.
    """
    whole = [text for text in (config.target_modules, config.exclude_modules) if isinstance(text, str)]
    parts = [*(config.rank_pattern or {}), *(config.alpha_pattern or {}), *(config.modules_to_save or ())]
    layers = config.layers_pattern or []
    parts += [layers] if isinstance(layers, str) else layers
    why = f"the patterns in its {CONFIG} take more than {PATTERN_SECONDS} seconds to match the names of layers"
    fix = "Name the layers in full instead of by a regular expression."
    with time_limit(PATTERN_SECONDS, Problem(key, why, value=adapter.folder, fix=fix)):
        try:
            for pattern in [*whole, *(rf"(.*\.)?({part})($|\..*)" for part in parts)]:
                compiled = re.compile(pattern)
                for name, _ in base.named_modules():
                    compiled.fullmatch(name)
        except (re.error, RecursionError, OverflowError) as error:
            why = f"a pattern in its {CONFIG} is not a regular expression: {error}"
            raise UserError(Problem(key, why, value=adapter.folder, fix=fix)) from None


def _grow_vocabulary(base: Any, adapter: Adapter, key: str) -> None:
    """Resize the base's vocabulary to the adapter's; the adapter must contain every new row."""
    rows = base.get_input_embeddings().weight.shape[0]
    full = _saved_rows(adapter)
    trained = {row for ids in adapter.token_rows.values() for row in ids}
    wanted = full or max([rows, *(row + 1 for row in trained)])
    if wanted == rows:
        return
    if not full and not trained >= set(range(rows, wanted)):
        why = f"it has trained token {max(trained)}, but lacks rows for some of the tokens from {rows} on"
        raise _mismatch(adapter, key, why)
    base.resize_token_embeddings(wanted, mean_resizing=False)
    # The adapter contains these rows. Without it, random rows would give different logits at each load.
    for end in (base.get_input_embeddings(), base.get_output_embeddings()):
        if end is not None:
            end.weight.data[rows:] = 0


def _saved_rows(adapter: Adapter) -> int | None:
    """Return the number of rows of embeddings or a head that the adapter saves in full, or None."""
    from safetensors import safe_open

    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if is_full_matrix(name):
                return file.get_slice(name).get_shape()[0]
    return None


def is_full_matrix(name: str) -> bool:
    """Return whether a weight of an adapter is a full embedding or head matrix."""
    return name.endswith(".weight") and name.split(".")[-2] in (
        "embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings",
    )  # fmt: skip


def _shapes(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("size mismatch")), lines[0] if lines else repr(error))[:240]


def _mismatch(adapter: Adapter, key: str, why: str) -> UserError:
    fix = "Set base_model_name_or_path in its adapter_config.json to the base that it was trained on."
    text = f"it does not match its base {adapter.base}: {why}"
    return UserError(Problem(key, text, value=adapter.folder, fix=fix))
