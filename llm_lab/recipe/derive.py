"""What a recipe leaves out is derived here, each value with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_lab.estimate.cost import FULL, available_bytes, memory_by_part
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, read_config_json, shape_of_config, shape_of_parts
from llm_lab.estimate.vocabulary import vocabulary_size

from .filling import Draft
from .finetune import derive_tuning
from .pace import faster_dtype, fill_intervals
from .score_defaults import derive_score
from .sizes import SIZES, Shape
from .untrained import UNTRAINED, derive_untrained

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022
EVALUATIONS = 10  # in a run, where it is long enough
CPU_MAX_STEPS = 500
CPU_MAX_LENGTH = 128
CUDA_MAX_LENGTH = 1024
CPU_EVAL_TOKENS = 131_072
CUDA_EVAL_TOKENS = 1_048_576
FLASH_MAX_HEAD_DIM = 256
# Measured: compiling takes half a minute on two CPU cores and saves about 5 ms of a 35 ms step.
COMPILE_PAYS_AFTER_STEPS = {"cpu": 5000, "cuda": 200}


def derive(
    values: Mapping[str, Any],
    machine: Machine,
    *,
    name: str = "run",
    known: ModelShape | None = None,
) -> tuple[dict[str, Any], dict[str, str], ModelShape | None]:
    """Fill in what is left out. Returns the values, {dotted key: reason}, and the model's shape.

    known: the shape of a checkpoint that is still to be made.
    """
    draft = Draft(values)
    draft.fill("name", name, "the recipe file's name")
    if draft.get("device") == "auto":
        why_not = machine.cuda_problem
        draft.set("device", machine.best_device, f"auto: {why_not}" if why_not else "auto: bf16 CUDA is there")
    if draft.get("stage") in UNTRAINED:
        return draft.values, draft.reasons, derive_untrained(draft, known)
    if draft.get("stage") != "pretrain":
        return draft.values, draft.reasons, derive_tuning(draft, machine, known)
    _derive_tokenizer(draft)
    vocab_size, _ = vocabulary_size(draft.get("tokenizer"))
    shape = known or _derive_model(draft, vocab_size)
    _derive_train(draft, machine, shape)
    derive_score(draft, "pretrain", shape)
    return draft.values, draft.reasons, shape


def model_source(values: Mapping[str, Any]) -> str:
    """Return how a recipe names its model: parts, config or checkpoint."""
    model = values.get("model")
    if isinstance(model, Mapping):
        return next((kind for kind in ("config", "checkpoint") if kind in model), "parts")
    return "parts"


def named_context(values: Mapping[str, Any]) -> int | None:
    """Return the longest context of a model that is named by its config or checkpoint, where it is at hand."""
    source = model_source(values)
    config = read_config_json(values["model"][source]) if source != "parts" else None
    return (config or {}).get("max_position_embeddings") or (config or {}).get("n_positions")


def _derive_tokenizer(draft: Draft) -> None:
    if model_source(draft.values) == "checkpoint":
        draft.fill("tokenizer", draft.get("model.checkpoint"), "the checkpoint's own")
    elif model_source(draft.values) == "config":
        designed = (read_config_json(draft.get("model.config")) or {}).get("lab_tokenizer")
        draft.fill("tokenizer", designed or "bytes", "the design's" if designed else "no tokenizer was named")
    else:
        size = draft.get("model.size")
        kind = SIZES[size].tokenizer
        draft.fill("tokenizer", kind if kind == "bytes" else {"bpe": kind}, f"model.size = {size}")


def _derive_model(draft: Draft, vocab_size: int) -> ModelShape | None:
    source = model_source(draft.values)
    if source != "parts":
        config = read_config_json(draft.get(f"model.{source}"))
        if config is None:
            return None
        return shape_of_config(config, vocab_size if source == "config" else None)
    size: str = draft.get("model.size")
    shape: Shape = SIZES[size]
    dial = f"size = {size}"
    given_width = draft.get("model.hidden_size")
    draft.fill("model.hidden_size", shape.hidden_size, dial)
    draft.fill("model.num_hidden_layers", shape.num_hidden_layers, dial)
    hidden: int = draft.get("model.hidden_size")
    if given_width in (None, shape.hidden_size):
        draft.fill("model.num_attention_heads", shape.num_attention_heads, dial)
    else:
        heads = _heads_for(hidden)
        draft.fill("model.num_attention_heads", heads, f"{hidden // heads} numbers a head")
    heads = draft.get("model.num_attention_heads")
    attention = draft.get("model.attention")
    if attention == "mha":
        draft.fill("model.num_key_value_heads", heads, "mha: one for each head")
    elif attention == "mqa":
        draft.fill("model.num_key_value_heads", 1, "mqa: one for all heads")
    elif heads == shape.num_attention_heads:
        draft.fill("model.num_key_value_heads", shape.num_key_value_heads, dial)
    else:
        draft.fill("model.num_key_value_heads", _kv_heads_for(heads), "gqa: about a quarter of the heads")
    draft.fill("model.head_dim", max(1, hidden // heads), "hidden_size / num_attention_heads")
    if draft.get("model.activation") == "swiglu":
        inner = max(8, round(hidden * 8 / 3 / 32) * 32)
        draft.fill("model.intermediate_size", inner, "8/3 × hidden_size, to a multiple of 32")
    else:
        draft.fill("model.intermediate_size", 4 * hidden, "4 × hidden_size")
    draft.fill("model.tie_word_embeddings", shape.tie_word_embeddings, dial)

    rows = draft.get("train.max_length") or 0
    original, factor = draft.get("model.original_max_position_embeddings"), draft.get("model.yarn_factor")
    yarn = draft.get("model.position_embedding") == "yarn"
    if yarn and original:
        draft.fill("model.max_position_embeddings", int(original * factor), "original context × yarn_factor")
    longest = max(shape.max_position_embeddings, rows)
    draft.fill(
        "model.max_position_embeddings", longest, dial if rows <= shape.max_position_embeddings else "train.max_length"
    )
    if yarn:
        longest = draft.get("model.max_position_embeddings")
        draft.fill(
            "model.original_max_position_embeddings",
            max(1, int(longest / factor)),
            "max_position_embeddings / yarn_factor",
        )
    return shape_of_parts(draft.get("model"), vocab_size)


def _heads_for(hidden: int) -> int:
    """Heads of about 64 numbers; fewer numbers for narrow models, always dividing the width."""
    wanted = max(1, hidden / (64 if hidden >= 256 else 32))
    ways = [n for n in range(1, hidden + 1) if hidden % n == 0 and (hidden // n) % 2 == 0] or [1]
    return min(ways, key=lambda n: (abs(n - wanted), n))


def _kv_heads_for(heads: int) -> int:
    ways = [n for n in range(1, heads + 1) if heads % n == 0 and n < heads] or [1]
    return min(ways, key=lambda n: (abs(n - heads / 4), n))


def _derive_train(draft: Draft, machine: Machine, shape: ModelShape | None) -> None:
    on_cpu = draft.get("device") == "cpu"
    longest = (shape and shape.max_position_embeddings) or named_context(draft.values) or CUDA_MAX_LENGTH
    most = CPU_MAX_LENGTH if on_cpu else CUDA_MAX_LENGTH
    where = "on a CPU" if on_cpu else "on a GPU"
    draft.fill(
        "train.max_length",
        min(longest, most),
        "the model's context" if longest <= most else f"at most {most:,} {where}",
    )
    draft.fill("train.dtype", *faster_dtype(machine, shape, on_cpu))
    draft.fill("train.attn_implementation", *_kernel(draft, machine, shape))
    _derive_batch(draft, machine, shape, on_cpu)
    _derive_steps(draft, machine, shape, on_cpu)
    steps: int = draft.get("train.max_steps")
    fill_intervals(draft, evaluations=EVALUATIONS)
    most = CPU_EVAL_TOKENS if on_cpu else CUDA_EVAL_TOKENS
    draft.fill("validation.max_tokens", most, f"enough to tell models apart, and soon done {where}")
    if on_cpu and not machine.has_compiler:
        draft.fill("train.compile", False, "no C++ compiler was found")
        return
    enough = COMPILE_PAYS_AFTER_STEPS["cpu" if on_cpu else "cuda"]
    pays = steps >= enough
    draft.fill("train.compile", pays, f"it pays from about {enough:,} steps on")


def _kernel(draft: Draft, machine: Machine, shape: ModelShape | None) -> tuple[str, str]:
    """Return the attention kernel for the parts on this machine, and why.

    flex_attention is never taken unasked: it is compiled anew for every length of a sample that is being written.
    """
    if draft.get("device") == "cpu":
        return "sdpa", "fused, and right for every combination of parts"
    if _position_embedding(draft.values) == "alibi":
        return "sdpa", "flash attention would drop ALiBi's penalties"
    if draft.get("train.document_mask"):
        return "sdpa", "flash attention knows no documents in a row"
    if draft.get("train.dtype") != "bfloat16":
        return "sdpa", "flash attention takes no float32"
    if shape is not None and shape.head_dim > FLASH_MAX_HEAD_DIM:
        return "sdpa", f"flash attention takes at most {FLASH_MAX_HEAD_DIM} numbers a head"
    if not machine.has_flash_attention:
        return "sdpa", "fused, and right for every combination of parts; the package flash-attn is not installed"
    window = ", and it skips what the sliding window hides" if draft.get("model.sliding_window") else ""
    return "flash_attention_2", f"the package flash-attn is installed{window}"


def _position_embedding(values: Mapping[str, Any]) -> str | None:
    """Return the model's position embedding where its parts or its config are at hand."""
    source = model_source(values)
    model = values["model"] if source == "parts" else read_config_json(values["model"][source])
    return (model or {}).get("position_embedding")


def _derive_batch(draft: Draft, machine: Machine, shape: ModelShape | None, on_cpu: bool) -> None:
    """Choose the rows of a batch, and recompute activations only where nothing else fits."""
    length: int = draft.get("train.max_length")
    memory_bytes = available_bytes(draft.get("device"), machine)
    rows = draft.get("train.per_device_train_batch_size") or (16 if on_cpu else 8 if shape is None else None)
    if shape is None:
        draft.fill("train.gradient_checkpointing", False, "the model's size is not known yet")
    else:
        # Rows that are derived leave a quarter to spare; rows that were asked for must just fit.
        room = (0.75 if rows is None else FULL) * memory_bytes
        plain, saved = (_bytes(draft, shape, rows or 1, length, checkpointing) for checkpointing in (False, True))
        many = "1 row" if (rows or 1) == 1 else f"{rows} rows"
        draft.fill(
            "train.gradient_checkpointing",
            plain > room,
            f"without it {many} would take {plain / 2**30:.1f} GiB, with it {saved / 2**30:.1f} GiB"
            if plain > room
            else f"{many} fit without it"
            if rows != 1 and rows is not None
            else "it fits without",
        )
    if on_cpu or shape is None:
        draft.fill("train.per_device_train_batch_size", rows, "the usual on a CPU" if on_cpu else "safe")
        draft.fill("train.gradient_accumulation_steps", 1, "one batch a step")
        return
    checkpointing = draft.get("train.gradient_checkpointing")
    rows = 1
    while rows * 2 * length <= 65_536 and _bytes(draft, shape, rows * 2, length, checkpointing) <= 0.75 * memory_bytes:
        rows *= 2
    draft.fill("train.per_device_train_batch_size", rows, f"fits {memory_bytes / 1e9:.0f} GB with a quarter to spare")
    rows = draft.get("train.per_device_train_batch_size")
    wanted = 2**15 if shape.parameters < 2e7 else 2**17 if shape.parameters < 1e8 else 2**18
    each = rows * length * machine.processes
    draft.fill("train.gradient_accumulation_steps", max(1, round(wanted / each)), f"about {wanted:,} tokens a step")


def _will_be_compiled(draft: Draft) -> bool:
    """Tell it before the steps are known: runs on a GPU are all but always long enough."""
    asked, steps = draft.get("train.compile"), draft.get("train.max_steps")
    if asked is not None or draft.get("device") == "cpu":
        return bool(asked)
    return steps is None or steps >= COMPILE_PAYS_AFTER_STEPS["cuda"]


def _bytes(draft: Draft, shape: ModelShape, rows: int, length: int, checkpointing: bool) -> int:
    parts = memory_by_part(
        shape,
        rows=rows,
        length=length,
        optimizer=draft.get("optimizer.name"),
        dtype=draft.get("train.dtype"),
        checkpointing=checkpointing,
        in_pieces=draft.get("stage") == "pretrain",
        compiled=_will_be_compiled(draft),
    )
    return sum(parts.values())


def _derive_steps(draft: Draft, machine: Machine, shape: ModelShape | None, on_cpu: bool) -> None:
    if shape is None:
        draft.fill("train.max_steps", CPU_MAX_STEPS if on_cpu else 10_000, "the model's size is not known yet")
        return
    devices = machine.processes
    rows = draft.get("train.per_device_train_batch_size") * draft.get("train.gradient_accumulation_steps")
    per_step = rows * draft.get("train.max_length") * devices
    wanted = max(1, round(TOKENS_PER_PARAMETER * shape.parameters / per_step))
    if on_cpu and wanted > CPU_MAX_STEPS:
        draft.fill("train.max_steps", CPU_MAX_STEPS, f"the CPU rehearsal; 20 tokens a parameter would be {wanted:,}")
    else:
        draft.fill("train.max_steps", wanted, f"20 tokens for each of {shape.parameters:,} parameters")
