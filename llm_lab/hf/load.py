"""Build a model from a recipe, or load one from disk or the Hub."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from logging import getLogger as get_logger
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError

from .native import lab_config
from .tokenizers import hub_problem

# What a config says of a model that does not write on. The library makes writers of them all, of random or unfit parts.
NO_WRITERS = {
    "ForSequenceClassification": "a reward model or classifier: it judges texts and writes none",
    "ForMaskedLM": "a model that fills gaps in a text: it sees what comes after, and can't write on",
}


def quiet_libraries() -> None:
    """Switch off the progress bars and chatter of the libraries: the display is ours."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # PEFT and TRL still call transformers by these names; they work until version 6.
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)
    # Its HTTP client tells of each retry on standard error; what came of them stands in our own error.
    get_logger("huggingface_hub").setLevel("ERROR")


def config_of_parts(parts: Mapping[str, Any], vocab_size: int) -> Any:
    """Return the LabConfig of a recipe's resolved parts."""
    from llm_lab.model.configuration_lab import LabConfig

    same = {key: value for key, value in parts.items() if key in LabConfig.__annotations__}
    rope = None
    if parts["position_embedding"] in ("rope", "yarn"):
        rope = {"rope_type": "default", "rope_theta": parts["rope_theta"]}
    if parts["position_embedding"] == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": parts["yarn_factor"],
            "original_max_position_embeddings": parts["original_max_position_embeddings"],
        }
    return LabConfig(
        vocab_size=vocab_size,
        **same,
        hidden_dropout=parts["dropout"],
        rope_parameters=rope,
    )


def read_config(name: str, *, key: str = "model.config", trust_remote_code: bool = False) -> Any:
    """Read a Hugging Face config from a folder, a config.json, or the Hub."""
    from transformers import AutoConfig

    from llm_lab.model.modeling_lab import register

    register()
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        path = path / "model"
    try:
        config = AutoConfig.from_pretrained(path if path.exists() else name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(hub_problem(error, key, name, "config")) from None
    if hasattr(config, "lab_tokenizer"):
        del config.lab_tokenizer  # a design's remark for the recipe, no part of a model
    return config


def require_writer(config: Any, name: str, *, key: str) -> None:
    """UserError for a model that is no causal LM by its own config."""
    kinds = getattr(config, "architectures", None) or ()
    for ending, what in NO_WRITERS.items():
        if any(kind.endswith(ending) for kind in kinds):
            raise UserError(Problem(key, f"this is {what}", value=name, fix="Name a model that writes."))


def build_from_config(config: Any, *, attn_implementation: str = "sdpa") -> Any:
    """Build a new causal LM with random weights; ours where the parts are ours, else the library's."""
    from transformers import AutoModelForCausalLM

    from llm_lab.model.modeling_lab import LabForCausalLM

    ours = config if config.model_type == "llm_lab" else lab_config(config)
    try:
        if ours is not None:
            return LabForCausalLM._from_config(ours, attn_implementation=attn_implementation)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    except (ValueError, ImportError) as error:
        raise UserError(Problem("model", f"this model can't be built: {error}")) from None


def context_of(model: Any) -> int | None:
    """Return how many tokens a model can see at once, or None where it has no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def checkpoint_activations(model: Any) -> None:
    """Keep only the inputs of the blocks for the backward pass, which computes the rest again."""
    # transformers is about to rename it; custom code on the Hub has the one or the other.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def load_model(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    merge: bool = False,
    load_in_4bit: bool = False,
    key: str = "model.checkpoint",
) -> Any:
    """Load a causal LM with its weights, in eval mode.

    folder: a Hugging Face folder, ours or not, an adapter's folder, or a name on the Hub. merge: put an adapter
    into its base instead of attaching it (a PeftModel); training begins from there. load_in_4bit: as QLoRA's
    frozen base, on CUDA. UserError where it can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llm_lab.model.modeling_lab import LabForCausalLM, register

    from .adapter import is_adapter, load_adapter
    from .lora import quantization_4bit, require_4bit

    if is_adapter(folder):
        options = {"dtype": dtype, "attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
        if load_in_4bit:
            why, fix = "an adapter can't be put into a base of 4 bits", f"First: llm-lab merge {folder}"
            raise UserError(Problem("lora.load_in_4bit", why, value=True, fix=fix))
        return load_adapter(folder, device=device, merge=merge, key=key, **options)
    register()
    config = read_config(str(folder), key=key, trust_remote_code=trust_remote_code)
    require_writer(config, str(folder), key=key)
    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    ours = config if config.model_type == "llm_lab" else lab_config(config)
    loader = AutoModelForCausalLM if ours is None else LabForCausalLM
    options = {"config": ours} if ours is not None else {"trust_remote_code": trust_remote_code}
    if load_in_4bit:
        require_4bit(device)
        extra |= {"quantization_config": quantization_4bit(), "device_map": device}
    try:
        model, found = loader.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), output_loading_info=True, **options, **extra
        )
    except Exception as error:
        raise UserError(hub_problem(error, key, str(folder), "model")) from None
    made_up = sorted(found["missing_keys"])
    if made_up:
        # The library fills them with random numbers, and says so only in its log.
        why = f"{len(made_up)} of the weights that its config speaks of are not there: {', '.join(made_up[:3])}"
        raise UserError(Problem(key, why, value=str(folder), fix="Fetch the model again, or fix its config.json."))
    return (model if load_in_4bit else model.to(device)).eval()
