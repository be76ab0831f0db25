"""Load a GGUF file as a model: transformers reads its config and tokenizer, and dequantizes its weights."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.gguf_header import gguf_architecture, read_gguf_header

# RoPE scaling of Llama 3 (its paper, section 3.2, and Meta's code); only the factor differs between its models.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_FIX = "Use the model that it was made from, as a Hugging Face folder or by its name on the Hub."


@contextmanager
def gguf_source(name: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (folder, options of from_pretrained) for a GGUF file.

    The folder contains only the file: transformers would also read a tokenizer.json or a config.json next to it, which
    may belong to another model.
    """
    from tqdm.auto import tqdm
    from transformers import modeling_gguf_pytorch_utils as reader

    reader.tqdm = partial(tqdm, disable=True)  # transformers' own switch does not affect this progress bar
    file = Path(name).expanduser().resolve()
    with tempfile.TemporaryDirectory() as alone:
        try:
            os.symlink(file, Path(alone, file.name))
        except OSError:  # Windows without the permission to create links
            yield str(file.parent), {"gguf_file": file.name}
            return
        yield alone, {"gguf_file": file.name}


def require_readable(name: str | Path, *, key: str) -> None:
    """Raise UserError if transformers can't read a GGUF file as a causal LM."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architecture = gguf_architecture(name)
    if architecture is None:
        why = "this is not a GGUF file of version 2 or 3, or it is not complete"
        raise UserError(Problem(key, why, value=name, fix="Check that the download is complete."))
    readable = {*GGUF_CONFIG_MAPPING, *_newer_architectures()} - {"general", "tokenizer"}
    readable = {one for one in readable if one.replace("gemma3", "gemma3_text") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    spellings = {architecture, architecture.replace("-", "_"), architecture.replace("moe", "_moe")}
    if not spellings & readable:
        why = f"transformers can't read GGUF files of the architecture {architecture}"
        raise UserError(Problem(key, why, value=name, allowed=", ".join(sorted(readable)), fix=_FIX))


def _newer_architectures() -> set[str]:
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:  # older versions, which have only the first reader of GGUF
        return set()
    return set(GGUF_CONFIG_ARCHS)


def dequantizing() -> dict[str, Any]:
    """Return the options of from_pretrained that dequantize every weight: quantized ones can't be trained."""
    import transformers

    kind = getattr(transformers, "GgufConfig", None)  # older versions always dequantize
    return {"quantization_config": kind(dequantize=True)} if kind is not None else {}


def forget_quantization(model: Any) -> None:
    """Remove the marks of quantization from a dequantized model, so that it is saved as a plain one."""
    for part in (model.config, model.config.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False


def load_gguf_tokenizer(name: str | Path, *, key: str) -> Any:
    """Return the tokenizer and the chat template in a GGUF file, as a class that is loaded without changes."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    require_readable(name, key=key)
    with gguf_source(name) as (folder, options):
        read = AutoTokenizer.from_pretrained(folder, **options)
    named = {kind: getattr(read, kind) for kind in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        chat_template=read.chat_template,
        clean_up_tokenization_spaces=False,
        **{kind: token for kind, token in named.items() if token is not None},
    )


def require_every_weight(model: Any, name: str | Path, *, key: str) -> None:
    """Raise UserError unless the model has as many weights as the GGUF file: transformers may drop some."""
    tensors = (read_gguf_header(name) or {}).get("tensors", {})
    stored = sum(math.prod(shape) for tensor, shape in tensors.items() if tensor != "rope_freqs.weight")
    held = sum(parameter.numel() for parameter in model.parameters())
    if stored != held:
        why = (
            f"transformers reads {held:,} weights from it, but the file has {stored:,}: the loaded model would be a "
            "different one"
        )
        raise UserError(Problem(key, why, value=name, fix=_FIX))


def restore_head_size(config: Any, name: str | Path) -> None:
    """Set the size of attention heads from a GGUF file; transformers leaves it at its default."""
    size = (read_gguf_header(name) or {}).get(f"{gguf_architecture(name)}.attention.key_length")
    if size and hasattr(config, "head_dim"):
        config.head_dim = size


def restore_rope_scaling(config: Any, name: str | Path, *, key: str) -> None:
    """Set the RoPE scaling from a GGUF file; transformers leaves it out for most architectures.

    Raises UserError for a scaling that can't be restored: the model would compute something else.
    """
    header, architecture = read_gguf_header(name) or {}, gguf_architecture(name)
    if architecture == "gpt-oss":
        return  # transformers restores it
    kind = header.get(f"{architecture}.rope.scaling.type", "none")
    factor = header.get(f"{architecture}.rope.scaling.factor")
    rope = {"rope_theta": header.get(f"{architecture}.rope.freq_base", 10000.0)}
    if kind in ("linear", "yarn") and factor:
        rope |= {"rope_type": kind, "factor": float(factor)}
        if original := header.get(f"{architecture}.rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = int(original)
    elif "rope_freqs.weight" in header.get("tensors", {}):
        rope |= {"rope_type": "llama3", **_LLAMA3, "factor": _llama3_factor(config, rope["rope_theta"], name, key)}
    elif kind != "none":
        why = f"its RoPE scaling ({kind}) can't be read from GGUF"
        raise UserError(Problem(key, why, value=name, fix=_FIX))
    else:
        return
    config.rope_parameters = rope


def _llama3_factor(config: Any, theta: float, name: str | Path, key: str) -> float:
    """Return the factor for which Llama 3's rule gives the divisors in the file. Raises UserError if there is none."""
    import numpy
    from gguf import GGUFReader
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    (stored,) = (tensor for tensor in GGUFReader(str(name)).tensors if tensor.name == "rope_freqs.weight")
    factor = float(numpy.max(stored.data))
    config.rope_parameters = {"rope_theta": theta, "rope_type": "llama3", **_LLAMA3, "factor": factor}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    steps = numpy.arange(len(scaled)) / len(scaled)
    if len(stored.data) != len(scaled) or not numpy.allclose(theta**-steps / scaled.numpy(), stored.data, rtol=1e-3):
        why = "its RoPE frequencies do not follow Llama 3's rule, so its scaling can't be read from GGUF"
        raise UserError(Problem(key, why, value=name, fix=_FIX))
    return factor
