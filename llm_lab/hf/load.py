"""Build a model from a recipe, or load one, with or without an adapter, from disk or the Hub."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from logging import getLogger as get_logger
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.estimate.parameters import context_in

from .adapter import CONFIG, WEIGHTS, attach_adapter, is_adapter, is_full_matrix, merge_into_base, read_adapter
from .configs import config_of_parts, read_config, require_causal_lm, require_memory
from .gguf import (
    dequantizing,
    forget_quantization,
    gguf_source,
    require_every_weight,
)
from .hub import files_of
from .save import lab_config, native_config
from .tokenizers import load_tokenizer, make_byte_tokenizer

# Buffers that earlier versions of transformers saved with the weights.
OLD_BUFFERS = re.compile(
    r"\.(inv_freq|cos_cached|sin_cached|position_ids|causal_mask|masked_bias|(attn|attention)\.bias)$"
)


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and log output: LLM Lab has its own display."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # PEFT and TRL still use these deprecated names, which work until transformers 6.
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)
    # Our configs have the old name next to the new one, for transformers 4.57.
    warnings.filterwarnings("ignore", message="`rope_scaling` is deprecated", category=FutureWarning)
    # The HTTP client logs each retry to standard error; we report only the final error.
    get_logger("huggingface_hub").setLevel("ERROR")


def build_from_config(config: Any, *, attn_implementation: str = "sdpa") -> Any:
    """Build a causal LM with random weights: LabForCausalLM if it has these parts, else the transformers class."""
    from transformers import AutoModelForCausalLM

    from llm_lab.model.modeling_lab import LabForCausalLM

    ours = config if config.model_type == "llm_lab" else lab_config(config)
    try:
        if ours is not None:
            return LabForCausalLM._from_config(ours, **kernel_options(attn_implementation))
        return AutoModelForCausalLM.from_config(config, **kernel_options(attn_implementation))
    except (ValueError, ImportError) as error:
        raise UserError(Problem("model", f"this model can't be built: {error}")) from None


def scale_residual_projections(model: Any) -> None:
    """Scale the residual projections of a new mixture of experts by 1/sqrt(2 layers), as in our own models."""
    import torch

    scale = (2 * model.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "experts.down_proj")):
                parameter.mul_(scale)


def kernel_options(kernel: str | None) -> dict[str, str]:
    """Return the options of transformers for an attention kernel.

    sdpa is its default, except for models that do not support it (BLOOM, MPT, Gemma 2), which get eager.
    """
    return {} if kernel in (None, "sdpa") else {"attn_implementation": str(kernel)}


def context_of(model: Any) -> int | None:
    """Return the maximum context length of a model in tokens, or None if it has no limit."""
    return context_in(model.config.get_text_config().to_dict())


def has_learned_positions(model: Any) -> bool:
    """Return whether a model has a trained vector for each position, so that it can't go beyond its context."""
    config = model.config.get_text_config()
    learned = getattr(config, "position_embedding", None) == "learned"
    return learned or config.model_type in ("gpt2", "opt", "gpt_bigcode")


def checkpoint_activations(model: Any) -> None:
    """Enable activation checkpointing: keep only the inputs of blocks and recompute the rest in the backward pass."""
    # transformers is renaming this method; custom code on the Hub may have either name.
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

    folder: a Hugging Face folder, an adapter folder, a GGUF file, or a Hub name. merge: merge an adapter into its base
    instead of attaching it (a PeftModel), for training. load_in_4bit: load the frozen base of QLoRA, on CUDA only.
    Raises UserError if it can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llm_lab.model.modeling_lab import LabForCausalLM, register

    if is_adapter(folder):
        options = {"dtype": dtype, "attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
        if load_in_4bit:
            why = "an adapter can't be merged into a 4-bit base"
            fix = f"First run: llm-lab merge {shlex.quote(str(folder))}"
            raise UserError(Problem("lora.load_in_4bit", why, value=True, fix=fix))
        return load_adapter(folder, device=device, merge=merge, key=key, **options)
    register()
    config = read_config(str(folder), key=key, trust_remote_code=trust_remote_code)
    with files_of(folder, key=key):
        require_causal_lm(config, str(folder), key=key)
        if not load_in_4bit:
            require_memory(config, str(folder), dtype=dtype, key=key)
        ours = config if config.model_type == "llm_lab" else lab_config(config)
    extra = kernel_options(attn_implementation)
    if device == "cuda":  # cuDNN attention spends about 0.1 s on a plan for each new length: too slow for growing texts
        torch.backends.cuda.enable_cudnn_sdp(False)
    if is_gguf(folder):
        if load_in_4bit:
            why, fix = "a GGUF file can't be loaded in 4 bits", "Use the model that it was made from."
            raise UserError(Problem("lora.load_in_4bit", why, value=True, fix=fix))
        return _load_gguf(folder, config, dtype=dtype, key=key, **extra).to(device).eval()
    loader = AutoModelForCausalLM if ours is None else LabForCausalLM
    options = {"config": ours or config} | ({} if ours is not None else {"trust_remote_code": trust_remote_code})
    if load_in_4bit:
        require_4bit(device)
        extra |= {"quantization_config": quantization_4bit(), "device_map": device}
    with files_of(folder, key=key):
        model, found = loader.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), output_loading_info=True, **options, **extra
        )
        require_all_weights(model, found, str(folder), key=key)
        require_token_ids(model)
        _describe_head(model)
        hide_router_logits(model)
    return (model if load_in_4bit else model.to(device)).eval()


def _load_gguf(file: str | Path, config: Any, *, dtype: str, key: str, **extra: Any) -> Any:
    """Load the model in a GGUF file, with dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with files_of(file, key=key), gguf_source(file) as (folder, options):
        options |= {"config": config, "output_loading_info": True, **dequantizing(), **extra}
        model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
        require_all_weights(model, found, str(file), key=key)
        require_every_weight(model, file, key=key)
        require_token_ids(model)
    _describe_head(model)
    hide_router_logits(model)
    forget_quantization(model)
    model.config._name_or_path = model.name_or_path = str(file)
    return model


def require_token_ids(model: Any) -> None:
    """Raise ValueError if a special token of a model's config or generation config is not an id."""
    for holder in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(holder, name, None)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(number, int) for number in ids):
                raise ValueError(f"{name} = {value!r} in its config is not a token id")


def require_all_weights(model: Any, found: Mapping[str, Any], name: str, *, key: str) -> None:
    """Raise UserError if a checkpoint lacks weights of the model, or has weights that the model does not use.

    found: the loading info of `from_pretrained`. transformers only logs both: it initializes the former randomly, and
    drops the latter.
    """
    fix = "Fix its config.json, or download the model again."
    missing, left_out = sorted(found["missing_keys"]), weights_left_out(model, found["unexpected_keys"])
    if missing:
        why = f"weights that its config requires are missing: {first_names(missing)}"
        raise UserError(Problem(key, why, value=name, fix=fix))
    if left_out:
        config = model.config.get_text_config()
        layers = {int(number) for weight in left_out for number in re.findall(r"\.(\d+)\.", weight)[:1]}
        depth = getattr(config, "num_hidden_layers", None) or 0
        more = f"; num_hidden_layers is {depth}" if layers and max(layers) >= depth > 0 else ""
        why = f"its config leaves out weights of the checkpoint: {first_names(left_out)}{more}"
        raise UserError(Problem(key, why, value=name, fix=fix))


def first_names(names: Sequence[str]) -> str:
    """Return the first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def weights_left_out(model: Any, names: Iterable[str]) -> list[str]:
    """Return the names of a checkpoint's weights that a model does not use.

    names: the unexpected weights, without those that the model's class expects to be unused. Buffers that the model
    computes are ignored: earlier versions of transformers saved them as weights.
    """
    computed = {_end_of(name) for name, _ in model.named_buffers()}
    return sorted(name for name in names if _end_of(name) not in computed and not OLD_BUFFERS.search(name))


def _end_of(name: str) -> tuple[str, ...]:
    return tuple(name.split(".")[-2:])


def _describe_head(model: Any) -> None:
    """Record in the config that the head has its own weights, if it has.

    transformers leaves such a head untied, even if the config says that it is tied. But everything that ties weights by
    the config (a resize of the vocabulary, saving as another class, other programs) would then lose the head.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False


def hide_router_logits(model: Any) -> None:
    """Let a mixture of experts return router logits only on request: as a config setting, they break generation."""
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False


def require_4bit(device: str) -> None:
    """Raise MachineError if a base can't be loaded in 4 bits, which requires CUDA and bitsandbytes."""
    if device != "cuda":
        why, fix = (
            "4-bit loading requires a CUDA GPU",
            "Set lora.load_in_4bit=false: the adapter is the same, the base uses more memory.",
        )
    elif find_spec("bitsandbytes") is None:
        why, fix = "bitsandbytes is not installed", "pip install 'llm-lab[cuda]', or set lora.load_in_4bit=false."
    else:
        return
    raise MachineError(Problem("lora.load_in_4bit", why, value=True, fix=fix))


def quantization_4bit() -> Any:
    """Return the quantization config of QLoRA: NF4 with double quantization (Dettmers et al., arXiv:2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def rows_on_disk(base: str | Path) -> int | None:
    """Return the number of vocabulary rows of a base as saved, or None if it was never saved."""
    folder = Path(base)
    if not str(base) or (not folder.exists() and str(base).count("/") > 1):
        return None
    if is_adapter(folder):
        adapter = read_adapter(folder)
        inner = rows_on_disk(adapter.base)
        rows = [row + 1 for ids in adapter.token_rows.values() for row in ids]
        return max([*rows, *([inner] if inner else [])], default=None)
    return read_config(str(base)).get_text_config().vocab_size


def load_adapter(
    folder: str | Path,
    *,
    device: str = "cpu",
    merge: bool = False,
    key: str = "adapter",
    **loading: Any,
) -> Any:
    """Load the base of an adapter, with the adapter attached, or merged into it (merge=True).

    A base that is itself an adapter is merged into its own base first. loading: options of `load_model`.
    """
    adapter = read_adapter(folder, key=key)
    if adapter.task == "SEQ_CLS":
        raise UserError(Problem(key, "this is the adapter of a reward model, which can't generate text", value=folder))
    # Merge on the CPU in float32: a sum in bf16 would lose most of a small adapter.
    dtype = loading.pop("dtype", "float32")
    base = load_model(adapter.base, key=key, merge=True, dtype="float32" if merge else dtype, **loading)
    with files_of(folder, key=key, what="adapter"):
        model = attach_adapter(base, adapter, key=key)
        require_token_ids(base)
    if merge:
        import torch

        model = merge_into_base(model, adapter, key=key).to(getattr(torch, dtype))
        # An adapter trained on this model then records this folder as its base, not the base without this adapter.
        model.config._name_or_path = model.name_or_path = str(folder)
        model.requires_grad_(True)  # PEFT leaves the base frozen, but this model will be trained
    return model.to(device).eval()


def require_removable_adapter(folder: str) -> None:
    """Raise UserError if an adapter replaced its base's embeddings or head, which can't be restored.

    If the vocabulary has grown, PEFT saves them in full, and overwrites the base's when it loads the adapter.
    """
    from safetensors import safe_open

    path = Path(folder)
    kept_separately = json.loads((path / CONFIG).read_text(encoding="utf-8")).get("modules_to_save") or ()
    with safe_open(path / WEIGHTS, framework="pt") as file:
        ends = [name for name in file.keys() if is_full_matrix(name) and name.split(".")[-2] not in kept_separately]  # noqa: SIM118
    if ends:
        why = "this adapter replaces the embeddings or head, so turning it off does not restore its base"
        raise UserError(Problem("adapter", why, value=folder, fix=f"Load the base itself: {read_adapter(path).base}"))


@contextmanager
def without_adapter(model: Any, folder: str) -> Iterator[Any]:
    """Make a PeftModel, loaded from `folder`, behave as its base; yields the base's tokenizer.

    PEFT's disable_adapter keeps added vocabulary rows and the end tokens of the adapter's chat template. This function
    restores the base's too, so the answers are those of the base loaded by itself.
    """
    require_removable_adapter(folder)
    base = read_adapter(folder).base
    tokenizer, inner = load_tokenizer(base), model.get_base_model()
    generation, config = _end_tokens(base)
    before = (model.generation_config, inner.generation_config)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(inner.config, name, None) for name in names}
    with model.disable_adapter(), _rows(inner, rows_on_disk(base)):
        try:
            model.generation_config = inner.generation_config = generation
            for name in names:
                setattr(inner.config, name, getattr(config, name, None))
            yield tokenizer
        finally:
            model.generation_config, inner.generation_config = before
            for name, value in ids.items():
                setattr(inner.config, name, value)


def _end_tokens(base: str) -> tuple[Any, Any]:
    """Return the base's generation config, and the config with its special tokens."""
    from transformers import GenerationConfig

    config = None if is_adapter(base) else read_config(base)
    try:
        generation = GenerationConfig.from_pretrained(base)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return generation, config or generation


@contextmanager
def _rows(model: Any, rows: int | None) -> Iterator[None]:
    """Reduce embeddings and head to the rows that the base has on disk, and restore the others afterwards."""
    cut: list[tuple[Any, Any]] = []
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer = _plain(end)
        for weight in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if rows is not None and weight is not None and len(weight) > rows:
                cut.append((weight, weight.data))
                weight.data = weight.data[:rows]  # tied weights are one parameter, cut only once
    try:
        yield
    finally:
        for weight, data in cut:
            weight.data = data


def _plain(layer: Any) -> Any:
    """Return the layer inside PEFT's wrappers."""
    while layer is not None:
        inner = getattr(layer, "original_module", None) or getattr(layer, "base_layer", None)
        if inner is None:
            return layer
        layer = inner
    return None


def write_design(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write a config.json for the resolved parts of a recipe to `folder` and return the folder.

    Native parts give a Llama, Mistral or Qwen3 config. For other parts the model code is written too, and for GPT-2's:
    training GPT-2's own class would add biases and ignore zero_init. The vocabulary size is the tokenizer's; for a BPE
    that is not yet trained, it is set again when training starts.
    """
    # Registers the code that save_pretrained writes next to a LabConfig.
    import llm_lab.model.modeling_lab  # noqa: F401

    quiet_libraries()
    lab = config_of_parts(values["model"], _vocabulary_size(values["tokenizer"]))
    native = native_config(lab) if lab.model_type == "llm_lab" else None
    config = native if native is not None and lab_config(native) is not None else lab
    config.lab_tokenizer = values["tokenizer"]  # so that pretraining this design uses the same tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    return folder


def _vocabulary_size(tokenizer: Any) -> int:
    if isinstance(tokenizer, Mapping):
        return tokenizer["bpe"]
    return len(make_byte_tokenizer() if tokenizer == "bytes" else load_tokenizer(tokenizer))
