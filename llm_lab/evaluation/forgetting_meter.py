"""What a fine-tune forgets: bits per byte of general text, compared with the starting model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_lab.data.paths import hub_mark
from llm_lab.data.sources import TextSource, open_source
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, RunWarning
from llm_lab.hf.load import context_of
from llm_lab.recipe.forgetting import KEY, Forgetting
from llm_lab.recipe.post_training import TalkRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import is_first_process

from .perplexity import measure_text

START, WARNED = "start_bits_per_byte", "warned_at_step"


def forgetting_measure(
    recipe: TalkRecipe, options: Forgetting, folder: RunFolder, listener: Listener, model: Any, tokenizer: Any
) -> Callable[[int], dict[str, float]]:
    """Return a function that measures the general text at a step: its bits per byte, and their rise since the start.

    The starting model is measured at step 0 and kept in run.json, so a resumed run compares with the same number.
    Raises UserError if the text can't be read, or has changed since the run began.
    """
    given = options.model_dump(exclude={"max_tokens", "threshold"})
    source = open_source(**given, key=KEY)
    _require_same(source, folder)
    device, train = recipe.device, recipe.train
    assert train.dtype is not None  # set by resolve
    length = min(train.max_length, context_of(model) or train.max_length)

    def measure(step: int) -> dict[str, float]:
        found = measure_text(
            model,
            tokenizer,
            source,
            max_tokens=options.max_tokens,
            max_length=length,
            rows=train.per_device_train_batch_size,
            device=device,
            dtype=str(train.dtype),
            listener=listener,
        )
        bits = found["bits_per_byte"]
        record: dict[str, Any] = {"path": source.path, "fingerprint": source.fingerprint, **hub_mark(source.path)}
        record |= {START: bits} | folder.facts().get(KEY, {})
        rise = bits - record[START]
        if rise > options.threshold and record.get(WARNED, step) >= step:
            record[WARNED] = step
            listener(RunWarning(_warning(options, step, record[START], bits)))
        if is_first_process():
            folder.update(**{KEY: record})
        return {"general_bits_per_byte": bits, "forgetting": rise}

    return measure


def _warning(options: Forgetting, step: int, before: float, now: float) -> str:
    return (
        f"at step {step:,} the model forgets: {options.path} takes {now:.3f} bits per byte, {now - before:.3f} more "
        f"than with the starting model (forgetting.threshold = {options.threshold:g}). To forget less, use a smaller "
        "learning rate, fewer steps, a LoRA adapter, or general text in the data."
    )


def _require_same(source: TextSource, folder: RunFolder) -> None:
    before = folder.facts().get(KEY, {}).get("fingerprint")
    if before and before != source.fingerprint:
        why, fix = "this text has changed since the run began", "Restore the old text, or start a new run."
        raise UserError(Problem(f"{KEY}.path", why, value=source.path, fix=fix))
