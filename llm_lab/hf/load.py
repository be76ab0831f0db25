"""Build a model from a recipe, or load one from disk or the Hub."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from logging import getLogger as get_logger
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError

from .adapter import CONFIG, WEIGHTS, attach_adapter, is_adapter, is_whole_end, read_adapter
from .save import lab_config, native_config
from .tokenizers import hub_problem, load_tokenizer, make_byte_tokenizer

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


def require_4bit(device: str) -> None:
    """MachineError where a base can't be kept in 4 bits: that takes CUDA and bitsandbytes."""
    if device != "cuda":
        why, fix = (
            "4 bits need a CUDA GPU",
            "Set lora.load_in_4bit=false: the adapter is the same, the base takes more memory.",
        )
    elif find_spec("bitsandbytes") is None:
        why, fix = "bitsandbytes is not installed", "pip install 'llm-lab[cuda]', or set lora.load_in_4bit=false."
    else:
        return
    raise MachineError(Problem("lora.load_in_4bit", why, value=True, fix=fix))


def quantization_4bit() -> Any:
    """Return how QLoRA keeps a base: NF4, its constants quantised too (Dettmers et al., arXiv:2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def rows_on_disk(base: str | Path) -> int | None:
    """Return how many tokens a base has rows for, as it is saved; None where it was never saved."""
    folder = Path(base)
    if not str(base) or (not folder.is_dir() and str(base).count("/") > 1):
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
    """Load an adapter's base with the adapter attached, or put into it (merge=True).

    A base that is an adapter itself is merged into its own base first. loading: as `load_model` takes them.
    """
    adapter = read_adapter(folder, key=key)
    if adapter.task == "SEQ_CLS":
        raise UserError(Problem(key, "this is the adapter of a reward model: it scores, and can't talk", value=folder))
    # Merged on the CPU in float32 where that is asked for: a sum in bf16 would lose most of a small adapter.
    dtype = loading.pop("dtype", "float32")
    base = load_model(adapter.base, key=key, merge=True, dtype="float32" if merge else dtype, **loading)
    model = attach_adapter(base, adapter, key=key)
    if merge:
        import torch

        model = model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
        # An adapter trained on it finds it here, and not in the base without this one.
        model.config._name_or_path = model.name_or_path = str(folder)
        model.requires_grad_(True)  # PEFT leaves the base frozen, and training begins from here
    return model.to(device).eval()


def require_switch(folder: str) -> None:
    """UserError for an adapter that has taken the place of its base's embeddings or head: they can't come back.

    PEFT saves them whole where the vocabulary has grown, and on loading writes them over the base's.
    """
    from safetensors import safe_open

    path = Path(folder)
    beside = json.loads((path / CONFIG).read_text(encoding="utf-8")).get("modules_to_save") or ()
    with safe_open(path / WEIGHTS, framework="pt") as file:
        ends = [name for name in file.keys() if is_whole_end(name) and name.split(".")[-2] not in beside]  # noqa: SIM118
    if ends:
        why = "this adapter brings embeddings or a head of its own, so its base can't be had by switching it off"
        raise UserError(Problem("adapter", why, value=folder, fix=f"Load the base itself: {read_adapter(path).base}"))


@contextmanager
def switch_adapter_off(model: Any, folder: str) -> Iterator[Any]:
    """Let a PeftModel, loaded from `folder`, be its base for a while; yields the base's tokenizer.

    PEFT's own switch leaves the rows that a larger vocabulary has added and the end tokens of the adapter's chat
    template: here they are the base's too, so that its answers are those of the base loaded by itself.
    """
    require_switch(folder)
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
    """Return the base's generation config, and what its config has for special tokens."""
    from transformers import GenerationConfig

    config = None if is_adapter(base) else read_config(base)
    try:
        generation = GenerationConfig.from_pretrained(base)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return generation, config or generation


@contextmanager
def _rows(model: Any, rows: int | None) -> Iterator[None]:
    """Cut embeddings and head down to the rows that the base has on disk, and give the others back afterwards."""
    cut: list[tuple[Any, Any]] = []
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer = _plain(end)
        for weight in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if rows is not None and weight is not None and len(weight) > rows:
                cut.append((weight, weight.data))
                weight.data = weight.data[:rows]  # of tied ones, it is the same parameter: cut once
    try:
        yield
    finally:
        for weight, data in cut:
            weight.data = data


def _plain(layer: Any) -> Any:
    """Return the layer that PEFT has wrapped."""
    while layer is not None:
        inner = getattr(layer, "original_module", None) or getattr(layer, "base_layer", None)
        if inner is None:
            return layer
        layer = inner
    return None


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
