"""Rules across keys. Each yields problems; all of them are told together, and the wizard asks them
beforehand why a choice is impossible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_lab.errors import Problem

from .evaluation_rules import EVALUATION_RULES
from .exporting import EXPORT_RULES
from .tuning_rules import TUNING_RULES
from .validate import find_key, stage_schema

Values = Mapping[str, Any]


def divisors(number: int, limit: int = 16) -> str:
    """Return the divisors of a number in words, the smaller ones where there are many."""
    found = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(map(str, found[:limit])) + (", ..." if len(found) > limit else "")


def _nearest(wanted: int, allowed: list[int]) -> int:
    return min(allowed, key=lambda n: (abs(n - wanted), n))


def _heads_divide_width(values: Values) -> Iterator[Problem]:
    model = _parts(values)
    hidden, heads, head_dim = (model.get(k) for k in ("hidden_size", "num_attention_heads", "head_dim"))
    if not hidden or not heads:
        return
    if hidden % heads:
        ways = [n for n in range(1, min(hidden, 1024) + 1) if hidden % n == 0]
        yield Problem(
            "model.num_attention_heads",
            f"must divide model.hidden_size = {hidden}",
            value=heads,
            allowed=divisors(hidden),
            fix=f"Try {_nearest(heads, ways)}.",
        )
    elif model.get("position_embedding") in ("rope", "yarn") and head_dim and head_dim % 2:
        key = "model.head_dim" if head_dim != hidden // heads else "model.num_attention_heads"
        yield Problem(
            key,
            f"rotary positions turn pairs of numbers, and {head_dim} numbers a head is odd",
            value=head_dim if key.endswith("dim") else heads,
            fix="Choose heads so that hidden_size / heads is even, or alibi or sinusoidal positions.",
        )


def _kv_heads_divide_heads(values: Values) -> Iterator[Problem]:
    model = _parts(values)
    heads, kv, kind = (model.get(k) for k in ("num_attention_heads", "num_key_value_heads", "attention"))
    if not heads or not kv:
        return
    if heads % kv:
        ways = [n for n in range(1, heads + 1) if heads % n == 0]
        yield Problem(
            "model.num_key_value_heads",
            f"must divide model.num_attention_heads = {heads}",
            value=kv,
            allowed=divisors(heads),
            fix=f"Try {_nearest(kv, ways)}.",
        )
    elif kind == "mha" and kv != heads:
        yield Problem(
            "model.num_key_value_heads",
            f"multi-head attention has as many key-value heads as heads ({heads})",
            value=kv,
            fix="Leave it out, or set model.attention to gqa.",
        )
    elif kind == "mqa" and kv != 1:
        yield Problem(
            "model.num_key_value_heads",
            "multi-query attention has one key-value head",
            value=kv,
            fix="Leave it out, or set model.attention to gqa.",
        )


def _sinusoids_come_in_pairs(values: Values) -> Iterator[Problem]:
    model = _parts(values)
    if model.get("position_embedding") == "sinusoidal" and (model.get("hidden_size") or 0) % 2:
        yield Problem(
            "model.hidden_size",
            "sinusoidal positions come in pairs of sine and cosine, so the width must be even",
            value=model["hidden_size"],
            fix=f"Try {model['hidden_size'] + 1}.",
        )


def _yarn_context_is_the_product(values: Values) -> Iterator[Problem]:
    model = _parts(values)
    if model.get("position_embedding") != "yarn":
        return
    longest, factor = model.get("max_position_embeddings"), model.get("yarn_factor")
    original = model.get("original_max_position_embeddings")
    if longest and factor and original and abs(original * factor - longest) >= factor:
        yield Problem(
            "model.original_max_position_embeddings",
            f"times yarn_factor = {factor:g} this gives {original * factor:g}, not max_position_embeddings = {longest}",
            value=original,
            fix=f"Set it to {max(1, int(longest / factor))}, or leave it out.",
        )


def _rows_fit_the_context(values: Values) -> Iterator[Problem]:
    model, train = _parts(values), values.get("train", {})
    longest, length = model.get("max_position_embeddings"), train.get("max_length")
    if longest and length and length > longest:
        yield Problem(
            "train.max_length",
            f"rows are longer than the model's context, model.max_position_embeddings = {longest}",
            value=length,
            fix=f"Set train.max_length to at most {longest}, or the model's context to {length}.",
        )


def _warmup_ends_within_the_run(values: Values) -> Iterator[Problem]:
    warmup = values.get("scheduler", {}).get("warmup_steps")
    steps = values.get("train", {}).get("max_steps")
    if warmup is not None and steps is not None and warmup >= steps:
        yield Problem(
            "scheduler.warmup_steps",
            f"warm-up would never end: the run has train.max_steps = {steps}",
            value=warmup,
            allowed=f"0 to {steps - 1}",
            fix=f"Try {max(0, steps // 20)}.",
        )


def _warmup_leaves_room_for_the_decay(values: Values) -> Iterator[Problem]:
    scheduler, steps = values.get("scheduler", {}), values.get("train", {}).get("max_steps")
    warmup, ratio = scheduler.get("warmup_steps"), scheduler.get("decay_ratio")
    if scheduler.get("name") != "wsd" or not steps or warmup is None or ratio is None or warmup >= steps:
        return
    decay = round(ratio * steps)
    if warmup + decay > steps:
        yield Problem(
            "scheduler.decay_ratio",
            f"{warmup} steps of warm-up and {decay} of decay are more than train.max_steps = {steps}",
            value=ratio,
            allowed=f"above 0, up to {(steps - warmup) / steps:.4g}",
            fix="Or take fewer scheduler.warmup_steps.",
        )


def warmup_steps_of(ratio: float, max_steps: int) -> int:
    """Return the warm-up steps that a share of the run amounts to; the last step is never one of them."""
    return min(max_steps - 1, round(ratio * max_steps))


def _warmup_is_said_once(values: Values) -> Iterator[Problem]:
    scheduler, steps = values.get("scheduler", {}), values.get("train", {}).get("max_steps")
    ratio, warmup = scheduler.get("warmup_ratio"), scheduler.get("warmup_steps")
    if ratio is not None and warmup is not None and steps and warmup != warmup_steps_of(ratio, steps):
        yield Problem(
            "scheduler.warmup_ratio",
            f"it makes {warmup_steps_of(ratio, steps)} of {steps} steps, and scheduler.warmup_steps says {warmup}",
            value=ratio,
            fix="Leave out one of the two.",
        )


def _alibi_has_a_kernel(values: Values) -> Iterator[Problem]:
    kernel = values.get("train", {}).get("attn_implementation")
    if _parts(values).get("position_embedding") == "alibi" and kernel == "flash_attention_2":
        yield Problem(
            "train.attn_implementation",
            "flash attention drops ALiBi's penalties without a word",
            value=kernel,
            allowed="sdpa, flex_attention, eager",
            fix="Leave it out.",
        )


def _kernel_runs_on_the_device(values: Values) -> Iterator[Problem]:
    kernel = values.get("train", {}).get("attn_implementation")
    if values.get("device") == "cpu" and kernel in ("flash_attention_2", "flex_attention"):
        reason = "needs CUDA" if kernel == "flash_attention_2" else "has no backward pass on a CPU"
        yield Problem("train.attn_implementation", f"{kernel} {reason}", value=kernel, allowed="sdpa, eager")


def _eight_bits_need_cuda(values: Values) -> Iterator[Problem]:
    if values.get("device") == "cpu" and values.get("optimizer", {}).get("name") == "adamw_8bit":
        why, fix = "its 8-bit moments need a CUDA GPU", "Take adamw, or a machine with a GPU and device=cuda."
        yield Problem("optimizer.name", why, value="adamw_8bit", fix=fix)


def _kernel_takes_the_model(values: Values) -> Iterator[Problem]:
    train, parts = values.get("train", {}), _parts(values)
    kernel = train.get("attn_implementation")
    if values.get("device") == "cpu" or (kernel == "flash_attention_2" and parts.get("position_embedding") == "alibi"):
        return  # what stands in the way there has a rule of its own
    if kernel == "flex_attention" and parts.get("attention_dropout"):
        why = f"flex attention has no dropout, and model.attention_dropout = {parts['attention_dropout']:g}"
    elif kernel == "flex_attention" and (parts.get("head_dim") or 16) < 16:
        why = f"flex attention takes at least 16 numbers a head, and model.head_dim = {parts['head_dim']}"
    elif kernel == "flash_attention_2" and (parts.get("head_dim") or 1) > 256:
        why = f"flash attention takes at most 256 numbers a head, and model.head_dim = {parts['head_dim']}"
    elif kernel == "flash_attention_2" and train.get("dtype") == "float32":
        why = "flash attention takes no float32"
    else:
        return
    yield Problem("train.attn_implementation", why, value=kernel, allowed="sdpa, eager", fix="Leave it out.")


def _checkpoint_brings_its_tokenizer(values: Values) -> Iterator[Problem]:
    model, tokenizer = values.get("model"), values.get("tokenizer")
    if isinstance(model, Mapping) and "checkpoint" in model and tokenizer not in (None, model["checkpoint"]):
        yield Problem(
            "tokenizer",
            "a checkpoint has its own tokenizer; its embeddings mean nothing in another",
            value=tokenizer,
            fix="Leave it out.",
        )


def _first_mistakes_with_data(values: Values) -> Iterator[Problem]:
    seen: dict[tuple, int] = {}
    for index, source in enumerate(values.get("data") or ()):
        same = tuple(source.get(k) for k in ("path", "subset", "split", "text_column"))
        if same in seen:
            yield Problem(
                f"data.{index}.path",
                f"the same set stands at data.{seen[same]} already",
                value=source.get("path"),
                fix="Name it once." if values.get("stage") == "eval" else "Give it once, with a larger weight.",
            )
        seen.setdefault(same, index)


def _builtin_text_is_no_stream(values: Values) -> Iterator[Problem]:
    for index, source in enumerate(values.get("data") or ()):
        if source.get("streaming") and str(source.get("path")).startswith("builtin:"):
            yield Problem(
                f"data.{index}.streaming",
                "built-in text is made on the spot, so there is nothing to stream",
                value=True,
                fix="Leave it out.",
            )


def _documents_are_masked_by_a_kernel_that_can(values: Values) -> Iterator[Problem]:
    train = values.get("train", {})
    if train.get("document_mask") and train.get("attn_implementation") == "flash_attention_2":
        yield Problem(
            "train.document_mask",
            "flash attention knows no documents in rows of a batch, and would mix them without a word",
            value=True,
            fix="Leave out train.attn_implementation: sdpa, flex_attention and eager can.",
        )


def _a_single_prompt_is_a_text(values: Values) -> Iterator[Problem]:
    prompts = (values.get("samples") or {}).get("prompts")
    if prompts is not None and not prompts:
        yield Problem("samples.prompts", "at least one prompt is needed", allowed='a list of texts; [""] is none')


RULES: tuple[Callable[[Values], Iterator[Problem]], ...] = (
    _heads_divide_width,
    _kv_heads_divide_heads,
    _sinusoids_come_in_pairs,
    _yarn_context_is_the_product,
    _rows_fit_the_context,
    _warmup_ends_within_the_run,
    _warmup_leaves_room_for_the_decay,
    _warmup_is_said_once,
    _alibi_has_a_kernel,
    _kernel_runs_on_the_device,
    _eight_bits_need_cuda,
    _kernel_takes_the_model,
    _checkpoint_brings_its_tokenizer,
    _first_mistakes_with_data,
    _builtin_text_is_no_stream,
    _documents_are_masked_by_a_kernel_that_can,
    _a_single_prompt_is_a_text,
)


def check_rules(values: Values, given: Mapping[str, Any]) -> list[Problem]:
    """Return every broken rule. values: the resolved recipe; given: what the user wrote."""
    rules = (*RULES, *TUNING_RULES, *EVALUATION_RULES, *EXPORT_RULES)
    problems = [problem for rule in rules for problem in rule(values)]
    return problems + list(_keys_that_do_nothing(values, given))


def applies(key_path: str, values: Values) -> bool:
    """Tell whether a key does anything, the other values being what they are."""
    key = find_key(stage_schema({"stage": values.get("stage", "pretrain")}), key_path, dict(values))
    return key is None or all(_at(values, other) in wanted for other, wanted in key.when.items())


def _keys_that_do_nothing(values: Values, given: Mapping[str, Any]) -> Iterator[Problem]:
    for path, value in flatten(given):
        if value is None or applies(path, values):
            continue
        if path == "model.num_key_value_heads":
            continue  # its own rule says more
        key = find_key(stage_schema({"stage": values.get("stage", "pretrain")}), path, dict(values))
        for other, wanted in key.when.items():
            if _at(values, other) not in wanted:
                yield Problem(
                    path,
                    f"does nothing with {other} = {_at(values, other)}",
                    value=value,
                    fix=f"Leave it out; it belongs to {other} = {' or '.join(map(str, wanted))}.",
                )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every leaf; lists of groups by index, other lists whole."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
            for index, item in enumerate(value):
                yield from flatten(item, f"{path}.{index}.")
        else:
            yield path, value


def _at(values: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(values, Mapping):
            return None
        values = values.get(step)
    return values


def _parts(values: Values) -> Mapping[str, Any]:
    model = values.get("model")
    return model if isinstance(model, Mapping) and "config" not in model and "checkpoint" not in model else {}
