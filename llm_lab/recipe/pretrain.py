"""Pretraining: next-token prediction on raw text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from llm_lab.errors import Problem, leave_out
from llm_lab.estimate.batch_warmup import AT_FIRST
from llm_lab.estimate.cost import (
    COMPILE_SECONDS,
    FULL,
    STEP_SECONDS,
    Estimate,
    available_bytes,
    estimate_pretraining,
    flops_per_second,
    memory_by_part,
    memory_of_each,
)
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, read_config_json, vocabulary_size

from .fields import Bool, Derived, Float, Group, Int, OneOf, option
from .optimizers import Muon, Optimizer
from .parts import (
    SIZES,
    Model,
    ModelParts,
    derive_model,
    model_source,
    named_context,
    position_embedding_of,
)
from .parts_rules import PARTS_RULES
from .scoring import REWARD_RULES, Score, derive_score, prompts_must_be_named
from .stage import PartialRecipe, Stage, StageRecipe, ToEstimate, Values, repeated_sets
from .train_loop import FLASH_MAX_HEAD_DIM, LOOP_RULES, SPLITS, Scheduler, TrainLoop, faster_dtype, fill_intervals

NAME = "pretrain"
ABOUT = "train on raw text, from scratch or from a checkpoint"
WHEN_EXHAUSTED = {
    "repeat": "read the dataset again",
    "stop": "end the run at the end of the dataset that ends first",
}
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022
EVALUATIONS = 10  # in a run that is long enough
CPU_MAX_STEPS = 500
MAX_LENGTH = {"cpu": 128, "cuda": 1024}
EVAL_TOKENS = {"cpu": 131_072, "cuda": 1_048_576}
# Measured: compiling takes half a minute on two CPU cores and saves about 5 ms of a 35 ms step.
COMPILE_PAYS_AFTER_STEPS = 5000  # on a CPU
COMPILE_SAVES = 0.25  # at least this share of the training time on a GPU: fewer kernels, less memory traffic
USUAL_BPE = 4096  # a vocabulary size to suggest
MAX_BATCH_TOKENS = 65_536  # a larger batch does not make a GPU faster


class BpeTokenizer(Group):
    """A byte-level BPE, trained on the run's own training text."""

    bpe: Int = option(..., help="maximum vocabulary size", ge=257, le=1_000_000)


class DataSource(Group):
    """One dataset of text."""

    path: str = option(
        ...,
        help="a file, folder or glob (txt, md, jsonl, csv, parquet, arrow), a built-in dataset such as "
        "builtin:stories, or a Hub name",
        question="Which dataset of text?",
        why="All files of a folder are read, or those of the training split. A text file is one document; in jsonl, "
        "csv and parquet each row is one. "
        "builtin:stories is generated locally and needs no network.",
        min_length=1,
    )
    subset: str | None = option(help="configuration of a Hub dataset", min_length=1)
    split: str = option("train", help="split of a Hub dataset, or of a folder with splits", min_length=1)
    text_column: str | None = option(
        help="column that holds the text", derived="recognized from the first rows", min_length=1
    )
    streaming: Bool = option(
        False,
        help="read the dataset while training, in its original order, without a copy on disk",
        question="Stream it?",
        why="For a dataset that does not fit on disk. Documents are read in their original order, without "
        "shuffling, and tokenized while the model trains; only a small part is kept at a time. A resumed run continues "
        "where it stopped. The length of a stream is not known in advance. With several GPUs, the first "
        "process reads it and sends the tokens to the others.",
    )
    weight: Float = option(1.0, help="weight in the mix, relative to the other datasets", gt=0.0)


class Validation(Group):
    """The validation data: held out of training, and the same at every evaluation."""

    fraction: Float = option(
        0.1,
        help="share of each dataset that is held out for validation (of a stream: its first stream_documents); 0: none",
        question="What share of the text is held out for validation?",
        ge=0.0,
        le=0.5,
    )
    from_: Annotated[str, OneOf(SPLITS)] = option(
        "end",
        alias="from",
        help="which part is held out",
        question="Which part of the text is held out?",
        choices=SPLITS,
        advanced=True,
    )
    max_tokens: Derived[Int] = option(
        help="maximum number of tokens per evaluation",
        question="Maximum number of tokens per evaluation?",
        derived="131,072 on a CPU, 1,048,576 on a GPU",
        ge=1,
        advanced=True,
    )
    stream_documents: Int = option(
        1000,
        help="streams: maximum number of documents at the start that are held out; at most about 4 M characters",
        question="Maximum number of documents held out at the start of a stream?",
        ge=1,
        le=100_000,
        advanced=True,
    )


class TrainSteps(Group):
    """The length of a pretraining run and of its rows."""

    max_steps: Derived[Int] = option(
        help="number of optimizer updates",
        question="How many steps?",
        why="A step is one optimizer update on per_device_train_batch_size × gradient_accumulation_steps × "
        "GPUs × max_length tokens. 20 tokens per parameter is compute-optimal; more still helps.",
        derived="about 20 tokens per parameter; at most 500 on a CPU",
        ge=1,
    )
    max_length: Derived[Int] = option(
        help="tokens per training sequence; the model may have a longer context, model.max_position_embeddings",
        question="Tokens per training sequence?",
        derived="max_position_embeddings, at most 1,024; at most 128 on a CPU",
        ge=2,
    )


class Train(TrainLoop, TrainSteps):
    """The run itself. A step is one optimizer update."""

    document_mask: Bool = option(
        False,
        help="attend only within a document; false: also to earlier documents in the same sequence",
        question="Keep attention within documents?",
        why="A sequence can contain several documents, separated by the end-of-text token. "
        "With the mask, that token starts the next document, which sees nothing before it, and positions restart. It "
        "costs some speed, because the fastest kernels support no mask. It helps where documents are much shorter "
        "than max_length.",
        advanced=True,
    )
    batch_size_warmup_steps: Int = option(
        0,
        help="steps with smaller batches: a quarter of the sequences in the first half of these steps, half of them in "
        "the second; 0: none",
        question="Steps with smaller batches?",
        why="While the loss falls fast, a token in a small batch teaches as much as in a large one, and there are more "
        "updates. GPT-3 and modded-nanogpt grow their batches. It helps where batches are large; the learning rate "
        "stays that of the schedule.",
        ge=0,
        advanced=True,
    )
    ema_decay: Float | None = option(
        help="evaluate and save an exponential moving average of the weights with this decay; null: the weights "
        "themselves",
        question="Decay of the moving average of the weights (empty: none)?",
        why="An average over the last 1 / (1 - decay) steps has less noise than the last weights: in published "
        "runs it lowers the loss by about 0.5 % with many passes over little data, and otherwise not at all. It helps "
        "most if the learning rate stays high. It costs a copy of the weights, and a second evaluation each time. "
        "Checkpoints keep both.",
        gt=0.0,
        lt=1.0,
        advanced=True,
    )
    compile: Derived[Bool] = option(
        help="use torch.compile",
        question="Compile the model?",
        derived="true where it saves more time over the run than compiling takes; on a CPU it requires a C++ compiler",
        advanced=True,
    )


class Samples(Group):
    """Texts generated at every evaluation, always from the same prompts."""

    prompts: tuple[str, ...] = option(
        ("",),
        help="the prompts of the samples; an empty string: no prompt",
        question="Prompts of the samples?",
        advanced=True,
    )
    max_new_tokens: Int = option(
        80, help="maximum length of a sample, in tokens", question="Tokens per sample?", ge=1, le=100_000, advanced=True
    )
    temperature: Float = option(
        0.8,
        help="sampling temperature; 0: greedy",
        question="Temperature of the samples?",
        ge=0.0,
        le=10.0,
        advanced=True,
    )


Tokenizer = Annotated[
    Annotated[str, Tag("named")] | Annotated[BpeTokenizer, Tag("trained")],
    Discriminator(lambda value: "trained" if isinstance(value, dict | BpeTokenizer) else "named"),
]


class PretrainRecipe(StageRecipe):
    """Pretraining: next-token prediction on raw text."""

    stage: Literal["pretrain"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    model: Model = option(
        ModelParts(),
        help="parts, {config: a config.json}, or {checkpoint: a model to continue from}",
    )
    tokenizer: Derived[Tokenizer] = option(
        help="bytes, {bpe: vocabulary size} to train a BPE tokenizer, a folder, or a name on the Hub",
        derived="the checkpoint's own; with model.config the one in its folder, or bytes; else from model.size: bytes "
        "for nano, a BPE tokenizer for larger sizes",
        names="tokenizer",
    )
    data: tuple[DataSource, ...] = option(..., help="the datasets, each with its weight", min_length=1)
    when_exhausted: Annotated[str, OneOf(WHEN_EXHAUSTED)] = option(
        "repeat",
        help="what happens when a dataset has been read to its end",
        question="What happens when a dataset has been read to its end?",
        choices=WHEN_EXHAUSTED,
        why="For up to about four epochs, repeated text is nearly as good as new text (Muennighoff et al. 2023). With "
        "stop, max_steps and the learning-rate schedule are shortened to the length of the data. The length of a "
        "stream is not known in advance: the run ends with it, before the schedule does.",
        advanced=True,
    )
    validation: Validation = option(Validation(), help="the validation data")
    optimizer: Optimizer = option(Muon(), help="the optimizer")
    scheduler: Scheduler = option(Scheduler(), help="the learning-rate schedule")
    train: Train = option(Train(), help="length, batches, evaluation and precision of the run")
    samples: Samples = option(Samples(), help="text generated at every evaluation")
    score: Score | None = option(
        help="outputs for held-out prompts are scored at every evaluation; null: nothing is scored"
    )


# --- derived values


def derive(stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None) -> ModelShape | None:
    """Fill in what a pretraining recipe leaves out."""
    _derive_tokenizer(recipe)
    shape = known or derive_model(recipe, vocabulary_size(recipe.get("tokenizer"))[0])
    device: str = recipe.get("device")
    longest = (shape and shape.max_position_embeddings) or named_context(recipe.values) or MAX_LENGTH["cuda"]
    most, where = MAX_LENGTH[device], "on a CPU" if device == "cpu" else "on a GPU"
    reason = "the model's context" if longest <= most else f"at most {most:,} {where}"
    recipe.fill("train.max_length", min(longest, most), reason)
    recipe.fill("train.dtype", *faster_dtype(machine, shape, device == "cpu"))
    recipe.fill("train.attn_implementation", *_kernel(recipe, machine, shape))
    _derive_batch(recipe, machine, shape)
    _derive_steps(recipe, machine, shape)
    fill_intervals(recipe, evaluations=EVALUATIONS)
    recipe.fill("validation.max_tokens", EVAL_TOKENS[device], f"enough to compare models, and fast {where}")
    _derive_compile(recipe, machine, shape)
    derive_score(stage, recipe, shape)
    return shape


def _derive_tokenizer(recipe: PartialRecipe) -> None:
    if model_source(recipe.values) == "checkpoint":
        recipe.fill("tokenizer", recipe.get("model.checkpoint"), "the checkpoint's own")
    elif model_source(recipe.values) == "config":
        designed = (read_config_json(recipe.get("model.config")) or {}).get("lab_tokenizer")
        recipe.fill(
            "tokenizer", designed or "bytes", "from the design" if designed else "the default with a config.json"
        )
    else:
        size = recipe.get("model.size")
        kind = SIZES[size].tokenizer
        recipe.fill("tokenizer", kind if kind == "bytes" else {"bpe": kind}, f"model.size = {size}")


def _kernel(recipe: PartialRecipe, machine: Machine, shape: ModelShape | None) -> tuple[str, str]:
    """Return the attention kernel for the parts on this machine, and the reason.

    flex_attention is never chosen: it would be compiled again for every length of a growing sample.
    """
    if recipe.get("device") == "cpu":
        return "sdpa", "fused, and supports every combination of parts"
    if position_embedding_of(recipe.values) == "alibi":
        return "sdpa", "FlashAttention would drop ALiBi's position penalties"
    if recipe.get("train.document_mask"):
        return "sdpa", "FlashAttention does not support document masks"
    if recipe.get("train.dtype") != "bfloat16":
        return "sdpa", "FlashAttention does not support float32"
    if shape is not None and shape.head_dim > FLASH_MAX_HEAD_DIM:
        return "sdpa", f"FlashAttention supports head sizes up to {FLASH_MAX_HEAD_DIM}"
    if not machine.has_flash_attention:
        return "sdpa", "fused, and supports every combination of parts; flash-attn is not installed"
    window = ", and it skips what the sliding window masks" if recipe.get("model.sliding_window") else ""
    return "flash_attention_2", f"flash-attn is installed{window}"


def _derive_batch(recipe: PartialRecipe, machine: Machine, shape: ModelShape | None) -> None:
    """Choose the rows of a batch, and gradient checkpointing only if nothing fits without it."""
    on_cpu = recipe.get("device") == "cpu"
    memory = available_bytes(recipe.get("device"), machine)
    rows = recipe.get("train.per_device_train_batch_size") or (16 if on_cpu else 8 if shape is None else None)
    if shape is None:
        recipe.fill("train.gradient_checkpointing", False, "the size of the model is not known yet")
    else:
        recipe.fill("train.gradient_checkpointing", *_needs_checkpointing(recipe, machine, shape, rows, memory))
    if on_cpu or shape is None:
        recipe.fill("train.per_device_train_batch_size", rows, "usual on a CPU" if on_cpu else "a safe choice")
        recipe.fill("train.gradient_accumulation_steps", 1, "one batch per step")
        return
    length, checkpointing = recipe.get("train.max_length"), recipe.get("train.gradient_checkpointing")
    wanted = _wanted_tokens(shape)
    most = min(MAX_BATCH_TOKENS, wanted // machine.processes)
    rows = 1
    while rows * 2 * length <= most and _bytes(recipe, machine, shape, rows * 2, checkpointing) <= 0.75 * memory:
        rows *= 2
    reason = f"fits into {memory / 1e9:.0f} GB with a quarter to spare"
    if rows * 2 * length > most:
        reason = f"{rows * length:,} tokens at a time use a GPU fully, or are a whole step"
    recipe.fill("train.per_device_train_batch_size", rows, reason)
    rows = recipe.get("train.per_device_train_batch_size")
    each = rows * length * machine.processes
    recipe.fill("train.gradient_accumulation_steps", max(1, round(wanted / each)), f"about {wanted:,} tokens per step")


def _wanted_tokens(shape: ModelShape) -> int:
    """Return the approximate number of tokens per step on a GPU, over all processes."""
    return 2**15 if shape.parameters < 2e7 else 2**17 if shape.parameters < 1e8 else 2**18


def _needs_checkpointing(
    recipe: PartialRecipe, machine: Machine, shape: ModelShape, rows: int | None, memory_bytes: int
) -> tuple[bool, str]:
    """Return whether the rows fit only with gradient checkpointing, and the reason."""
    # Derived rows leave a quarter of the memory free; rows that the user set only have to fit.
    room = (0.75 if rows is None else FULL) * memory_bytes
    plain, saved = (_bytes(recipe, machine, shape, rows or 1, checkpointing) for checkpointing in (False, True))
    counted = "1 sequence" if (rows or 1) == 1 else f"{rows} sequences"
    if plain > room:
        return True, f"{counted} would take {plain / 2**30:.1f} GiB without it, {saved / 2**30:.1f} GiB with it"
    return False, f"{counted} fit without it" if rows is not None and rows != 1 else "it fits without"


def _bytes(recipe: PartialRecipe, machine: Machine, shape: ModelShape, rows: int, checkpointing: bool) -> int:
    parts = memory_by_part(
        shape,
        rows=rows,
        length=recipe.get("train.max_length"),
        optimizer=recipe.get("optimizer.name"),
        dtype=recipe.get("train.dtype"),
        checkpointing=checkpointing,
        in_pieces=True,
        compiled=_will_be_compiled(recipe, machine, shape),
        cautious=bool(recipe.get("optimizer.cautious_weight_decay")),
        averaged=bool(recipe.get("train.ema_decay")),
    )
    train = {key: recipe.get(f"train.{key}") for key in ("distributed", "dtype")}
    return sum(memory_of_each(parts, shape, train, machine.processes).values())


def _will_be_compiled(recipe: PartialRecipe, machine: Machine, shape: ModelShape) -> bool:
    """Predict whether the model will be compiled, before batches and steps are known."""
    wanted = recipe.get("train.compile")
    if wanted is not None or recipe.get("device") == "cpu" or recipe.get("train.distributed") == "fsdp":
        return bool(wanted)
    return _saved_by_compiling(recipe, machine, shape) > COMPILE_SECONDS["cuda"]


def _saved_by_compiling(recipe: PartialRecipe, machine: Machine, shape: ModelShape) -> float:
    """Estimate the seconds that compiling saves on a GPU over the whole run."""
    get, steps, length = recipe.get, recipe.get("train.max_steps"), recipe.get("train.max_length")
    rows, batches = get("train.per_device_train_batch_size"), get("train.gradient_accumulation_steps")
    per_step = rows * batches * length if rows and batches else _wanted_tokens(shape) / machine.processes
    if steps is None:
        steps = TOKENS_PER_PARAMETER * shape.parameters / (per_step * machine.processes)
    step = shape.training_flops_per_token(length) * per_step / flops_per_second("cuda", machine)
    return COMPILE_SAVES * steps * (STEP_SECONDS["cuda"] * (batches or 1) + step)


def _derive_steps(recipe: PartialRecipe, machine: Machine, shape: ModelShape | None) -> None:
    on_cpu = recipe.get("device") == "cpu"
    if shape is None:
        steps = CPU_MAX_STEPS if on_cpu else 10_000
        recipe.fill("train.max_steps", steps, "the size of the model is not known yet")
        return
    rows = recipe.get("train.per_device_train_batch_size") * recipe.get("train.gradient_accumulation_steps")
    per_step = rows * recipe.get("train.max_length") * machine.processes
    wanted = max(1, round(TOKENS_PER_PARAMETER * shape.parameters / per_step))
    if on_cpu and wanted > CPU_MAX_STEPS:
        reason = f"at most {CPU_MAX_STEPS} on a CPU; 20 tokens per parameter would be {wanted:,} steps"
        recipe.fill("train.max_steps", CPU_MAX_STEPS, reason)
    else:
        recipe.fill("train.max_steps", wanted, f"20 tokens for each of {shape.parameters:,} parameters")


def _derive_compile(recipe: PartialRecipe, machine: Machine, shape: ModelShape | None) -> None:
    if recipe.get("train.distributed") == "fsdp":
        recipe.fill("train.compile", False, "not supported with fsdp")
    elif recipe.get("device") == "cpu":
        if not machine.has_compiler:
            recipe.fill("train.compile", False, "no C++ compiler was found")
        enough = COMPILE_PAYS_AFTER_STEPS
        recipe.fill("train.compile", recipe.get("train.max_steps") >= enough, f"pays off from about {enough:,} steps")
    elif shape is None:
        recipe.fill("train.compile", False, "the size of the model is not known yet")
    else:
        saved, costs = _saved_by_compiling(recipe, machine, shape), COMPILE_SECONDS["cuda"]
        reason = f"it takes about {costs:.0f} s and would save about {saved:,.0f} s"
        recipe.fill("train.compile", saved > costs, reason)


def estimate(stage: Stage, work: ToEstimate) -> Estimate:
    """Estimate memory, time and disk."""
    return estimate_pretraining(work.values, work.shape, work.machine, first_step=work.first_step, own=work.own)


# --- rules


def _checkpoint_has_its_own_tokenizer(values: Values) -> Iterator[Problem]:
    model, tokenizer = values.get("model"), values.get("tokenizer")
    if isinstance(model, Mapping) and "checkpoint" in model and tokenizer not in (None, model["checkpoint"]):
        why = "the checkpoint has its own tokenizer, and its embeddings only work with that one"
        yield Problem("tokenizer", why, value=tokenizer, fix=leave_out("tokenizer"))


def _a_bpe_has_a_size(values: Values) -> Iterator[Problem]:
    tokenizer, is_new = values.get("tokenizer"), model_source(values) != "checkpoint"
    if is_new and isinstance(tokenizer, str) and tokenizer.lower() == "bpe" and not Path(tokenizer).exists():
        fix = f"Write {{bpe: {USUAL_BPE}}}; on the command line: tokenizer.bpe={USUAL_BPE}."
        yield Problem("tokenizer", "a BPE tokenizer needs a vocabulary size", value=tokenizer, fix=fix)


def _builtin_text_is_not_streamed(values: Values) -> Iterator[Problem]:
    for index, source in enumerate(values.get("data") or ()):
        if source.get("streaming") and str(source.get("path")).startswith("builtin:"):
            why = "built-in text is generated locally, so there is nothing to stream"
            yield Problem(f"data.{index}.streaming", why, value=True, fix=leave_out(f"data.{index}.streaming"))


def _kernel_supports_document_masks(values: Values) -> Iterator[Problem]:
    train = values.get("train") or {}
    if train.get("document_mask") and train.get("attn_implementation") == "flash_attention_2":
        yield Problem(
            "train.document_mask",
            "FlashAttention does not support document masks and would silently mix the documents of a sequence",
            value=True,
            fix="Leave out train.attn_implementation: sdpa, flex_attention and eager support them.",
        )


def _batches_can_grow(values: Values) -> Iterator[Problem]:
    train, key = values.get("train") or {}, "train.batch_size_warmup_steps"
    steps, most, rows = train.get(key[6:]), train.get("max_steps"), train.get("per_device_train_batch_size")
    if steps and most and steps >= most:
        why = f"the steps with smaller batches must be fewer than train.max_steps = {most}"
        yield Problem(key, why, value=steps, allowed=f"0 to {most - 1}", fix=f"Try {max(0, most // 10)}.")
    if steps and rows and rows % AT_FIRST:
        why = f"a quarter of train.per_device_train_batch_size = {rows}, as in the first batches, is not a whole number"
        more = AT_FIRST * -(-rows // AT_FIRST)
        fix = f"Set train.per_device_train_batch_size={more}, or another multiple of {AT_FIRST}."
        yield Problem(key, why, value=steps, fix=fix)


PRETRAIN = Stage(
    name=NAME,
    title="Pretrain",
    label="Pretraining",
    about=ABOUT,
    recipe=PretrainRecipe,
    why=(
        "Pretraining: the model learns to predict the next token of raw text. It starts from random weights "
        "(from scratch), or from those of a run or another model. The result continues texts; it does not answer "
        "questions yet."
    ),
    rules=(
        *PARTS_RULES,
        *LOOP_RULES,
        *REWARD_RULES,
        _checkpoint_has_its_own_tokenizer,
        _a_bpe_has_a_size,
        repeated_sets,
        _builtin_text_is_not_streamed,
        _kernel_supports_document_masks,
        _batches_can_grow,
        prompts_must_be_named(NAME),
    ),
    derive=derive,
    estimate=estimate,
    trains=True,
    from_scratch=True,
    examples="text",
    made="pretrained from scratch",
    loss_unit="nats per token",
    next_step="Continue pretraining",
    next=("sft", "eval", "export"),
)
