"""Put a LoRA adapter into its base, and prove that the result is the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError

from .adapter import Adapter, attach_adapter, is_adapter, read_adapter
from .load import context_of, load_model, read_config
from .save import save_model
from .tokenizers import load_tokenizer

# The largest difference of logits, by the largest logit. In float32 only the order of sums differs. A weight in
# bf16 keeps 8 bits, an error of up to 2^-9 (0.2 %) each, which some dozens of layers add up to a percent or two;
# fp16 keeps 11 bits.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 3e-3}
PROBE_TEXT = "The quick brown fox jumps over the lazy dog. 12 + 30 = 42\n" * 4
PROBE_ROWS, PROBE_TOKENS = 4, 64


@dataclass(frozen=True)
class Merged:
    """A merge that was done: the largest differences of logits, in logits.

    largest_logit: what they are measured by. effect: what the adapter changes at most. difference: attached
    against the written model, which holds weights of `dtype`; float32_difference: before rounding to it.
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
        """Return it in one line."""
        return (
            f"the largest difference of logits is {self.difference:.2g} ({self.relative_difference:.2g} of their "
            f"size; {self.tolerance:.2g} is allowed); the adapter itself changes them by up to {self.effect:.2g}"
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
    """Write the base with the adapter in it as a plain Hugging Face folder, `out`, in the base's own dtype.

    Works in float32 on the CPU, whatever the base's size. load: opens a base, and the result, so; for a causal LM
    if left out. UserError where
    adapter and base do not belong together, or where the result's logits differ by more than the tolerance
    (relative to the largest logit); what was written then stays for the caller to drop.
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
    model = model.merge_and_unload(safe_merge=True)
    in_float32 = _difference(_logits(model, probe), attached)
    # What is written may be rounded; what is summed may not.
    limit = tolerance if tolerance is not None and dtype == "float32" else TOLERANCES["float32"]
    if not in_float32 / scale <= limit:
        raise _too_different(in_float32 / scale, limit, key, folder, "merged in float32")

    limit = tolerance if tolerance is not None else TOLERANCES[dtype]
    _round(model, dtype)
    save_model(model, out, tokenizer)
    del model
    written = _difference(_logits(load(str(out)), probe), attached)
    if not written / scale <= limit:
        raise _too_different(written / scale, limit, key, folder, f"written in {dtype}")
    return Merged(adapter, dtype, scale, effect, in_float32, written, limit)


def find_tokenizer(adapter: Adapter, *, key: str = "adapter") -> Any:
    """Return the adapter's own tokenizer, or its base's. UserError where the two number tokens differently."""
    if not (adapter.folder / "tokenizer_config.json").is_file() and not (adapter.folder / "tokenizer.json").is_file():
        return load_tokenizer(adapter.base, key=key)
    own = load_tokenizer(adapter.folder, key=key)
    try:
        base = load_tokenizer(adapter.base, key=key)
    except UserError:
        return own  # a base without a tokenizer has nothing to say against it
    other = own.get_vocab()
    moved = [token for token, number in base.get_vocab().items() if other.get(token) != number]
    if moved:
        why = f"its tokenizer is not that of its base {adapter.base}: {len(moved):,} tokens differ, as {moved[0]!r}"
        raise UserError(Problem(key, why, value=adapter.folder))
    return own


def _storage_dtype(base: str, key: str) -> str:
    """Return the dtype that the weights of a base are kept in. UserError where they are quantised."""
    while is_adapter(base):
        base = read_adapter(base, key=key).base
    config = read_config(base, key=key)
    if getattr(config, "quantization_config", None):
        fix = "Name the same model, not quantised, as base_model_name_or_path in adapter_config.json."
        raise UserError(Problem(key, "its base is kept quantised, and takes no adapter", value=base, fix=fix))
    dtype = str(config.dtype).removeprefix("torch.")
    return dtype if dtype in TOLERANCES else "float32"


def _round(model: Any, dtype: str) -> None:
    import torch

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)


def _probe_tokens(model: Any, tokenizer: Any, adapter: Adapter, seed: int, key: str) -> Any:
    """Return token ids, (rows, tokens), to compare two models on: drawn at random, a text, the rows it trained."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        why = f"its tokenizer has {len(tokenizer):,} tokens, and the model with it rows for {rows:,}"
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

    with torch.inference_mode():  # a row at a time: a classifier without a padding token takes no more
        return torch.cat([model.eval()(input_ids=row[None], use_cache=False).logits for row in ids])


def _difference(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


def _too_different(relative: float, limit: float, key: str, folder: str | Path, what: str) -> UserError:
    why = (
        f"the model {what} is not the one with the adapter attached: logits differ by up to {relative:.2g} of their "
        f"size, and {limit:.2g} is allowed"
    )
    fix = "Keep the adapter beside its base, or allow more with merge.tolerance."
    return UserError(Problem(key, why, value=folder, fix=fix))
