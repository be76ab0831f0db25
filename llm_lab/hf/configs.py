"""Configs of models: made from a recipe's parts, or read and checked before anything of their size is created."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.estimate.adapter_base import read_object
from llm_lab.estimate.formatting import size
from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.estimate.machine import find_machine
from llm_lab.estimate.parameters import guess_shape, layer_types_of, shape_of_config

from .adapter import is_adapter, read_adapter
from .gguf import gguf_source, require_readable, restore_head_size, restore_rope_scaling
from .hub import files_of
from .save import with_experts

# Architectures that are not causal LMs. transformers would load them as causal LMs, with random or unsuitable weights.
NOT_CAUSAL = {
    "ForSequenceClassification": "a reward model or classifier, which scores text and can't generate any",
    "ForMaskedLM": "a masked language model, which fills gaps and can't generate text",
}

_LARGEST: dict[tuple[str, ...], int] = {
    ("hidden_size", "n_embd", "d_model", "dim", "intermediate_size", "n_inner", "ffn_dim", "d_ff"): 2**20,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"): 2**12,
    ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "head_dim"): 2**16,
    ("num_local_experts", "num_experts", "n_routed_experts"): 2**16,
    ("vocab_size", "num_labels"): 2**24,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"): 2**28,
}


def config_of_parts(parts: Mapping[str, Any], vocab_size: int) -> Any:
    """Return the config for the resolved parts of a recipe: a LabConfig, or with experts a native mixture's."""
    from llm_lab.model.configuration_lab import LabConfig

    same = {key: value for key, value in parts.items() if key in LabConfig.__annotations__}
    rope: dict[str, Any] | None = None
    if parts["position_embedding"] == "rope":
        rope = {"rope_type": "default", "rope_theta": parts["rope_theta"]}
    elif parts["position_embedding"] == "yarn":
        rope = {
            "rope_type": "yarn",
            "rope_theta": parts["rope_theta"],
            "factor": parts["yarn_factor"],
            "original_max_position_embeddings": parts["original_max_position_embeddings"],
        }
    config = LabConfig(
        vocab_size=vocab_size,
        **same,
        layer_types=layer_types_of(parts),
        hidden_dropout=parts["dropout"],
        rope_parameters=rope,
    )
    return with_experts(config, parts) if parts.get("num_experts") else config


def read_config(name: str, *, key: str = "model.config", trust_remote_code: bool = False) -> Any:
    """Read a Hugging Face config from a folder, a config.json, or the Hub."""
    from transformers import AutoConfig, PreTrainedConfig

    from llm_lab.model.modeling_lab import register

    register()
    with files_of(name, key=key, what="config"):
        path = Path(name).expanduser()
        if is_gguf(path):
            return _read_gguf_config(path, key, name)
        if path.is_dir() and not (path / "config.json").exists() and (path / "model" / "config.json").exists():
            path = path / "model"
        _require_plausible(PreTrainedConfig.get_config_dict(path if path.exists() else name)[0], key, name)
        config = AutoConfig.from_pretrained(path if path.exists() else name, trust_remote_code=trust_remote_code)
        _drop_named_code(config)
        if hasattr(config, "lab_tokenizer"):
            del config.lab_tokenizer  # from write_design, for the recipe; not part of the model
        _require_sizes(config)
    return config


def _read_gguf_config(path: Path, key: str, name: str) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    require_readable(path, key=key)
    with gguf_source(path) as (folder, options):
        _require_plausible(PreTrainedConfig.get_config_dict(folder, **options)[0], key, name)
        config = AutoConfig.from_pretrained(folder, **options)
    restore_head_size(config, path)
    restore_rope_scaling(config, path, key=key)
    _require_sizes(config)
    return config


def _require_plausible(values: Any, key: str, name: str) -> None:
    """Raise UserError for an implausibly large size in a config, before anything of that size is created."""
    for part, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            _require_plausible(value, key, name)
        most = next((most for keys, most in _LARGEST.items() if part in keys), None)
        if most is not None and isinstance(value, int | float) and not abs(value) <= most:
            why = f"its config has {part} = {value:,}, which is too large for any known model"
            raise UserError(Problem(key, why, value=name, allowed=f"at most {most:,}"))


def _require_sizes(config: Any) -> None:
    """Raise ValueError if a size is not a whole number; transformers checks few of them."""
    text = config.get_text_config()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        value = getattr(text, name, None)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} = {value!r} in its config.json is not a whole number of at least 1")


def _drop_named_code(config: Any) -> None:
    """Remove a config's settings of kernels: they can name repositories on the Hub, whose code would run."""
    for part in (config, *(getattr(config, key) for key in config.sub_configs if getattr(config, key, None))):
        part._attn_implementation_internal = part._experts_implementation_internal = None
        for key in ("attn_implementation", "experts_implementation", "kernel_config", "use_kernels"):
            part.__dict__.pop(key, None)


def has_own_code(name: str) -> bool:
    """Return whether a model, its tokenizer or its adapter's base comes with code that requires the user's trust."""
    from transformers.utils import cached_file

    path = Path(name).expanduser()
    if is_gguf(path):
        return False
    if is_adapter(path):
        return has_own_code(read_adapter(path).base)
    for file_name in ("config.json", "tokenizer_config.json"):
        file = path / file_name
        if not path.is_dir():
            with files_of(name, key="checkpoint"):
                found = cached_file(name, file_name, _raise_exceptions_for_missing_entries=False)
            file = Path(found or file)
        facts = read_object(file) or {}
        if facts.get("auto_map") and facts.get("model_type") != "llm_lab":
            return True
    return False


def require_causal_lm(config: Any, name: str, *, key: str) -> None:
    """Raise UserError if the config's architecture is not a causal LM."""
    kinds = getattr(config, "architectures", None) or ()
    for ending, what in NOT_CAUSAL.items():
        if any(kind.endswith(ending) for kind in kinds):
            raise UserError(Problem(key, f"this is {what}", value=name, fix="Use a causal language model."))


def require_memory(config: Any, name: str, *, dtype: str, key: str) -> None:
    """Raise MachineError if the weights of a config are larger than this machine's memory, before they are created."""
    values = config.get_text_config().to_dict()
    shape = shape_of_config(values) or guess_shape(values)
    if shape is None:
        return
    needed, there = shape.parameters * (4 if dtype == "float32" else 2), find_machine().memory_bytes
    if needed > there:
        why = f"its config describes {shape.parameters:,} parameters, {size(needed)} in {dtype}"
        fix = "Use a smaller model, or fix its config.json."
        raise MachineError(Problem(key, f"{why}; this machine has {size(there)}", value=name, fix=fix))
