"""Merge a LoRA adapter into its base and verify that the result is the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import MERGE_TOLERANCES

from .adapter import Adapter, attach_adapter, is_adapter, merge_into_base, read_adapter
from .configs import read_config
from .load import context_of, load_model
from .save import save_model
from .tokenizers import load_tokenizer

PROBE_TEXT = "The quick brown fox jumps over the lazy dog. 12 + 30 = 42\n" * 4
PROBE_ROWS, PROBE_TOKENS = 4, 64


@dataclass(frozen=True)
class Merged:
    """The result of a merge, with maximum absolute differences of logits.

    largest_logit: the scale for relative differences. effect: base compared with base plus adapter. difference:
    attached adapter compared with the saved model, whose weights are `dtype`. float32_difference: the same before
    rounding to `dtype`.
    """

    adapter: Adapter
    dtype: str
    largest_logit: float
    effect: float
    float32_difference: float
    difference: float
    tolerance: float

    @property
    def relative_difference(self) -> float:
        return self.difference / self.largest_logit

    def describe(self) -> str:
        """Return the result in one line."""
        return (
            f"logit difference at most {self.difference:.2g} (relative {self.relative_difference:.2g}, "
            f"allowed {self.tolerance:.2g}); the adapter changes them by up to {self.effect:.2g}"
        )


def merge_adapter(
    folder: str | Path,
    out: Path,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    load: Callable[[str], Any] | None = None,
    key: str = "adapter",
) -> Merged:
    """Merge an adapter and write the result as a plain Hugging Face folder, `out`, in the base's dtype.

    Computes in float32 on the CPU. load: function that loads the base and the result; by default as a causal LM.
    Raises UserError if adapter and base do not match, or if the logits of the result differ by more than the
    tolerance (relative to the largest logit); the caller must then remove `out`.
    """
    adapter = read_adapter(folder, key=key)
    load = load or partial(load_model, merge=True, key=key)
    dtype = _storage_dtype(adapter.base, key)
    tokenizer = find_tokenizer(adapter, key=key)
    model = attach_adapter(load(adapter.base), adapter, key=key)
    probe = _probe_tokens(model, tokenizer, adapter, seed, key)
    attached = _logits(model, probe)
    with model.disable_adapter():
        effect = _difference(_logits(model, probe), attached)
    scale = max(float(attached.abs().max()), 1e-12)
    model = merge_into_base(model, adapter, key=key)
    in_float32 = _difference(_logits(model, probe), attached)
    # The saved weights may be rounded; the merge itself must be exact.
    limit = tolerance if tolerance is not None and dtype == "float32" else MERGE_TOLERANCES["float32"]
    if not in_float32 / scale <= limit:
        raise _too_different(in_float32 / scale, limit, key, folder, "merged in float32", is_set=dtype == "float32")

    limit = tolerance if tolerance is not None else MERGE_TOLERANCES[dtype]
    _round(model, dtype)
    save_model(model, out, tokenizer)
    del model
    saved = _difference(_logits(load(str(out)), probe), attached)
    if not saved / scale <= limit:
        raise _too_different(saved / scale, limit, key, folder, f"saved in {dtype}", is_set=True)
    return Merged(adapter, dtype, scale, effect, in_float32, saved, limit)


def find_tokenizer(adapter: Adapter, *, key: str = "adapter") -> Any:
    """Return the adapter's tokenizer, or its base's. Raises UserError if their token ids differ."""
    if not (adapter.folder / "tokenizer_config.json").is_file() and not (adapter.folder / "tokenizer.json").is_file():
        return load_tokenizer(adapter.base, key=key)
    own = load_tokenizer(adapter.folder, key=key)
    try:
        base = load_tokenizer(adapter.base, key=key)
    except UserError:
        return own  # the base has no tokenizer to compare with
    other = own.get_vocab()
    moved = [token for token, number in base.get_vocab().items() if other.get(token) != number]
    if moved:
        why = f"its tokenizer differs from that of its base {adapter.base}: {len(moved):,} tokens, such as {moved[0]!r}"
        raise UserError(Problem(key, why, value=adapter.folder))
    return own


def _storage_dtype(base: str, key: str) -> str:
    """Return the dtype of a base's saved weights. Raises UserError if they are quantized."""
    while is_adapter(base):
        base = read_adapter(base, key=key).base
    config = read_config(base, key=key)
    if getattr(config, "quantization_config", None):
        fix = "Set base_model_name_or_path in adapter_config.json to the same model without quantization."
        raise UserError(
            Problem(key, "its base is quantized, so an adapter can't be merged into it", value=base, fix=fix)
        )
    dtype = str(config.dtype).removeprefix("torch.")
    return dtype if dtype in MERGE_TOLERANCES else "float32"


def _round(model: Any, dtype: str) -> None:
    import torch

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)


def _probe_tokens(model: Any, tokenizer: Any, adapter: Adapter, seed: int, key: str) -> Any:
    """Return token ids (rows, tokens) to compare two models on: random ids, a text, and the trained rows."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        why = f"its tokenizer has {len(tokenizer):,} tokens, but the model has only {rows:,} vocabulary rows"
        raise UserError(Problem(key, why, value=adapter.folder))
    length = min(PROBE_TOKENS, context_of(model) or PROBE_TOKENS)
    ids = torch.randint(rows, (PROBE_ROWS, length), generator=torch.Generator().manual_seed(seed))
    text = torch.tensor(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"][:length], dtype=torch.long)
    ids[0, : len(text)] = text
    trained = torch.tensor(sorted({row for found in adapter.token_rows.values() for row in found})[-length:]).long()
    ids[1, : len(trained)] = trained
    return ids


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():  # one row at a time: a classifier without a padding token requires batch size 1
        return torch.cat([model.eval()(input_ids=row[None], use_cache=False).logits for row in ids])


def _difference(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


def _too_different(
    relative: float, limit: float, key: str, folder: str | Path, what: str, *, is_set: bool
) -> UserError:
    """Return the error. is_set: whether merge.tolerance sets this limit."""
    why = (
        f"the model {what} differs from the base with the adapter attached: relative logit difference "
        f"{relative:.2g}, allowed {limit:.2g}"
    )
    fix = "Use the adapter without merging" + (", or set a larger merge.tolerance." if is_set else ".")
    return UserError(Problem(key, why, value=folder, fix=fix))
