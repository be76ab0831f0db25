"""The recipe: every key there is. The wizard, the checks, the YAML and the docs are derived from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .fields import Bool, Float, Group, Int, option
from .parts import ModelCheckpoint, ModelConfig, ModelParts
from .scoring import Score

STAGES = {
    "pretrain": "learn from raw text, from scratch or on from a checkpoint",
    "sft": "learn to answer, from conversations",
    "reward": "learn to judge answers, from preferences",
    "dpo": "prefer the better answer, straight from preferences",
    "grpo": "try, score, and do more of what scored well; groups of answers compared",
    "ppo": "try, score, and do more of what scored well; with a critic",
    "merge": "put a LoRA adapter into its base",
    "eval": "measure: loss on texts, answers to prompts, speed, tasks",
    "export": "a form for others to load, proven by loading it",
}
DEVICES = {
    "cuda": "requires a CUDA GPU that does bf16",
    "cpu": "the rehearsal: everything works, at toy size",
    "auto": "bf16 CUDA where there is one, the rehearsal elsewhere",
}
OPTIMIZERS = {
    "muon": "orthogonalised momentum for matrices, AdamW for the rest; fewest steps",
    "adamw": "the standard",
    "adamw_8bit": "AdamW with its moments in 8 bits: a quarter of their memory; CUDA and bitsandbytes",
    "lion": "sign of the momentum; half of AdamW's memory, a smaller learning rate",
    "sophia": "momentum over estimated curvature, clipped; an extra pass every k steps",
    "adafactor": "factored second moments: almost no memory",
}
SCHEDULERS = {
    "cosine": "down along a half cosine; the standard",
    "linear": "down along a straight line",
    "polynomial": "down along (1 - progress) to a power",
    "wsd": "warm-up, stable, decay: flat, then down at the end",
    "none": "stays flat after warm-up",
}
SPLITS = {
    "end": "the last part of the text, in order",
    "random": "documents chosen by a hash of their content",
}
DTYPES = {
    "bfloat16": "autocast over float32 master weights",
    "float32": "full precision",
}
WHEN_EXHAUSTED = {
    "repeat": "goes on with its next epoch",
    "stop": "the run ends where the first set ends",
}
TRACKERS = {
    "tensorboard": "event files in the run's folder",
    "wandb": "Weights & Biases; without a login kept in the run's folder, to sync later",
    "trackio": "trackio, Hugging Face's: kept on this machine",
}
ATTENTION_KERNELS = {
    "sdpa": "torch's fused attention",
    "flash_attention_2": "the flash-attn package (CUDA)",
    "flex_attention": "torch's compiled flex attention (CUDA)",
    "eager": "plain matrix products; slow, for study",
}


class BpeTokenizer(Group):
    """A byte-level BPE, trained on the run's own training text."""

    bpe: Int = option(..., help="entries of the vocabulary, at most", ge=257, le=1_000_000)


class DataSource(Group):
    """One set of texts."""

    path: str = option(
        ...,
        help="a file, folder or glob (txt, md, jsonl, csv, parquet), builtin:stories, or a Hub name",
        question="Which text?",
        why="A folder is read with all its files of one kind. One text file is one document; one row of "
        "jsonl, csv or parquet is one document. builtin:stories is made on the spot and needs no network.",
        min_length=1,
    )
    subset: str | None = option(help="the Hub dataset's configuration", min_length=1)
    split: str = option("train", help="the Hub dataset's split", min_length=1)
    text_column: str | None = option(
        help="column that holds the text", derived="found by looking at the first rows", min_length=1
    )
    streaming: Bool = option(
        False,
        help="read it bit by bit while training, in its own order, without a copy on the disk",
        question="Stream it?",
        why="For a set that does not fit the disk. Nothing is kept but a small window: the rows are read in the order "
        "they stand in, unshuffled, and tokenised while the model trains. A run goes on where it stopped without "
        "reading again. Where it ends can't be known beforehand. With several GPUs each reads the whole stream.",
    )
    weight: Float = option(1.0, help="share of the mix, relative to the others", gt=0.0)


class Validation(Group):
    """What is kept from training, to measure on. Never trained on, the same at every evaluation."""

    fraction: Float = option(
        0.1,
        help="share of each set that is kept for validation; 0: none, of streams too",
        question="What share of the text is kept for validation?",
        ge=0.0,
        le=0.5,
    )
    from_: Literal[tuple(SPLITS)] = option(
        "end",
        alias="from",
        help="which part is kept",
        question="Which part of the text is kept?",
        choices=SPLITS,
        advanced=True,
    )
    max_tokens: Int | None = option(
        help="tokens measured at an evaluation, at most",
        question="Tokens measured at an evaluation, at most?",
        derived="131,072 on a CPU, 1,048,576 on a GPU",
        ge=1,
        advanced=True,
    )
    stream_documents: Int = option(
        1000,
        help="of a set that is streamed: its first documents are kept, at most so many, and at most max_tokens",
        question="Documents kept at the head of a stream, at most?",
        ge=1,
        le=100_000,
        advanced=True,
    )


def _name(default: str) -> Any:
    return option(
        default,
        help="how weights follow their gradients",
        choices=OPTIMIZERS,
        question="Which optimizer?",
        why="Muon needed the fewest steps where it was measured here (nano); most published numbers are AdamW's. "
        "Lion and Adafactor save memory. Sophia costs an extra pass now and then. Each has its own scale of learning "
        "rates: another optimizer, another default.",
    )


def _learning_rate(default: float, why: str) -> Any:
    return option(default, help="the peak learning rate", question="Learning rate?", why=why, gt=0.0, le=10.0)


def _weight_decay(default: float, why: str | None = None) -> Any:
    return option(
        default,
        help="pulls matrices towards zero; never norms, biases or embeddings",
        question="Weight decay?",
        why=why,
        ge=0.0,
        le=10.0,
        advanced=True,
    )


def _betas(default: tuple[float, float], what: str) -> Any:
    return option(default, help=f"{what}: decay of the two moments", question=f"{what}: betas?", advanced=True)


Beta = Annotated[float, Field(strict=True, ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(strict=True, gt=0.0)]


class AdamW(Group):
    """AdamW (Loshchilov & Hutter 2017)."""

    name: Literal["adamw"] = _name("adamw")
    learning_rate: Float = _learning_rate(
        1e-3, "1e-3 to 3e-3 for models under 10 M, 6e-4 at 124 M, 3e-4 at 1 B: larger models want less."
    )
    betas: tuple[Beta, Beta] = _betas((0.9, 0.95), "AdamW")
    eps: Float = option(1e-8, help="added to the root", question="AdamW: epsilon?", gt=0.0, advanced=True)
    weight_decay: Float = _weight_decay(0.1)


class AdamW8bit(Group):
    """AdamW with blockwise 8-bit moments (Dettmers et al. 2021), by bitsandbytes on CUDA."""

    name: Literal["adamw_8bit"] = _name("adamw_8bit")
    learning_rate: Float = _learning_rate(
        1e-3, "As AdamW's: the moments of hidden matrices are rounded to 8 bits in blocks of 256, the rest stays."
    )
    betas: tuple[Beta, Beta] = _betas((0.9, 0.95), "AdamW")
    eps: Float = option(1e-8, help="added to the root", question="AdamW: epsilon?", gt=0.0, advanced=True)
    weight_decay: Float = _weight_decay(0.1)


class Muon(Group):
    """Muon (Jordan et al. 2024): hidden matrices by orthogonalised momentum, the rest by AdamW."""

    name: Literal["muon"] = _name("muon")
    learning_rate: Float = _learning_rate(
        0.02,
        "For the hidden matrices. 0.02 works from nano to small: each update is orthogonal, so its size does "
        "not depend on the gradient's.",
    )
    momentum: Float = option(0.95, help="of the hidden matrices", question="Momentum?", ge=0.0, lt=1.0, advanced=True)
    nesterov: Bool = option(True, help="look ahead along the momentum", question="Nesterov?", advanced=True)
    ns_steps: Int = option(5, help="Newton-Schulz steps", question="Newton-Schulz steps?", ge=1, le=20, advanced=True)
    weight_decay: Float = _weight_decay(0.01)
    adamw_learning_rate: Float = option(
        3e-3,
        help="for embeddings, head, norms and biases",
        question="Learning rate for embeddings, head and norms?",
        gt=0.0,
        le=10.0,
        advanced=True,
    )
    adamw_betas: tuple[Beta, Beta] = _betas((0.9, 0.95), "AdamW part")
    adamw_eps: Float = option(1e-8, help="added to the root", question="AdamW part: epsilon?", gt=0.0, advanced=True)


class Lion(Group):
    """Lion (Chen et al. 2023): every weight moves by the learning rate, in the direction of the momentum's sign."""

    name: Literal["lion"] = _name("lion")
    learning_rate: Float = _learning_rate(2e-4, "3 to 10 times smaller than AdamW's: a step moves every weight fully.")
    betas: tuple[Beta, Beta] = _betas((0.9, 0.99), "Lion")
    weight_decay: Float = _weight_decay(0.5, "3 to 10 times AdamW's, as the learning rate is that much smaller.")


class Sophia(Group):
    """Sophia-G (Liu et al. 2023): momentum over a Gauss-Newton-Bartlett estimate of curvature, clipped."""

    name: Literal["sophia"] = _name("sophia")
    learning_rate: Float = _learning_rate(8e-4, "About 0.8 times what AdamW would take, as its authors advise.")
    betas: tuple[Beta, Beta] = _betas((0.96, 0.99), "Sophia")
    rho: Float = option(
        0.05,
        help="scale of the curvature: larger clips less",
        question="Rho?",
        why="Tune it so that 10 to 50 % of the entries are not clipped; the log has it as unclipped_share.",
        gt=0.0,
        le=10.0,
        advanced=True,
    )
    k: Int = option(
        10,
        help="steps between two estimates of the curvature",
        question="Steps between two estimates of the curvature (k)?",
        why="Each costs one more forward and backward pass: with 10 about a twentieth of the time.",
        ge=1,
        le=10_000,
        advanced=True,
    )
    weight_decay: Float = _weight_decay(0.2, "Its authors' value for language models.")


class Adafactor(Group):
    """Adafactor (Shazeer & Stern 2018), as transformers has it: rows and columns instead of full second moments."""

    name: Literal["adafactor"] = _name("adafactor")
    learning_rate: Float = _learning_rate(
        0.02, "With scale_parameter it is relative: a weight matrix moves by this share of its own size."
    )
    scale_parameter: Bool = option(
        True,
        help="steps in proportion to the size of the weights",
        question="Scale steps by the size of the weights?",
        advanced=True,
    )
    decay_rate: Float = option(
        0.8,
        help="the second moment's memory grows as step ** decay_rate",
        question="Decay rate?",
        gt=0.0,
        le=1.0,
        advanced=True,
    )
    clip_threshold: Float = option(
        1.0, help="root mean square of an update, at most", question="Clip updates at?", gt=0.0, advanced=True
    )
    beta1: Beta | None = option(
        help="momentum; null: none, and no memory for it", question="Momentum (empty: none)?", advanced=True
    )
    eps: tuple[Positive, Positive] = option(
        (1e-30, 1e-3),
        help="added to squared gradients; least size of a weight matrix",
        question="The two epsilons?",
        advanced=True,
    )
    weight_decay: Float = _weight_decay(0.0, "None in the paper.")


class Scheduler(Group):
    """The learning rate over the run: up during warm-up, then down to the floor, never up again."""

    name: Literal[tuple(SCHEDULERS)] = option(
        "cosine",
        help="the curve after warm-up",
        question="Which learning-rate curve?",
        choices=SCHEDULERS,
        why="The last, small steps bring most of the gain: every curve but `none` ends at the floor. wsd can be "
        "gone on with from its flat part; the others are made for one length.",
    )
    warmup_steps: Int | None = option(
        help="steps up to the peak",
        question="Warm-up steps?",
        derived="warmup_ratio × max_steps, else 5 % of max_steps, at most 2,000",
        ge=0,
    )
    warmup_ratio: Float | None = option(
        help="warm-up as a share of the run, instead of warmup_steps",
        question="Warm-up as a share of the run (empty: in steps)?",
        ge=0.0,
        lt=1.0,
        advanced=True,
    )
    min_ratio: Float = option(
        0.1,
        help="the floor, as a share of the peak",
        question="Floor, as a share of the peak?",
        ge=0.0,
        le=1.0,
        when={"scheduler.name": ("cosine", "linear", "polynomial", "wsd")},
        advanced=True,
    )
    power: Float = option(
        2.0,
        help="of the polynomial: 1 is linear",
        question="Power of the polynomial?",
        gt=0.0,
        le=10.0,
        when={"scheduler.name": ("polynomial",)},
    )
    decay_ratio: Float = option(
        0.2,
        help="share of the run in which it decays, at the end",
        question="Share of the run that decays?",
        why="A tenth to a fifth is enough (Hu et al. 2024): the flat part can be gone on with later.",
        gt=0.0,
        le=1.0,
        when={"scheduler.name": ("wsd",)},
    )


class TrainSteps(Group):
    """How long a pretraining run is, and its rows."""

    max_steps: Int | None = option(
        help="optimizer updates",
        question="How many steps?",
        why="A step is one optimizer update on per_device_train_batch_size × gradient_accumulation_steps × "
        "GPUs × max_length tokens. 20 tokens a parameter is the best use of compute; more still helps.",
        derived="about 20 tokens a parameter; at most 500 on a CPU",
        ge=1,
    )
    max_length: Int | None = option(
        help="tokens in a row of the batch: what the model sees at once",
        question="Context while training, in tokens?",
        derived="max_position_embeddings, at most 1,024; at most 128 on a CPU",
        ge=2,
    )


ReportTo = Annotated[
    Annotated[Literal[("none", *TRACKERS)], Tag("one")]
    | Annotated[tuple[Literal[tuple(TRACKERS)], ...], Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class TrainLoop(Group):
    """What every trained stage sets: batches, when to evaluate and save, precision."""

    per_device_train_batch_size: Int | None = option(
        help="rows in a batch on each device",
        question="Rows in a batch?",
        derived="16 on a CPU; on a GPU what its memory takes",
        ge=1,
    )
    gradient_accumulation_steps: Int | None = option(
        help="batches in a step",
        question="Batches in a step?",
        derived="1 on a CPU; on a GPU up to about 0.25 M tokens a step",
        ge=1,
        advanced=True,
    )
    max_grad_norm: Float = option(
        1.0, help="gradients longer than this are shortened", question="Clip gradients at?", gt=0.0, advanced=True
    )
    eval_steps: Int | None = option(
        help="steps between evaluations",
        question="Steps between evaluations?",
        derived="a tenth of max_steps, at least 10",
        ge=1,
    )
    save_steps: Int | None = option(
        help="steps between checkpoints: what a crash can cost",
        question="Steps between checkpoints?",
        derived="as eval_steps",
        ge=1,
    )
    save_total_limit: Int = option(
        3, help="checkpoints that are kept", question="Checkpoints that are kept?", ge=1, advanced=True
    )
    logging_steps: Int | None = option(
        help="steps between log lines",
        question="Steps between log lines?",
        derived="a fiftieth of max_steps, 1 to 50",
        ge=1,
        advanced=True,
    )
    dtype: Literal[tuple(DTYPES)] | None = option(
        help="precision of the matrix products; master weights are always float32",
        question="Precision?",
        choices=DTYPES,
        derived="bfloat16 on CUDA; on a CPU the faster",
        advanced=True,
    )
    attn_implementation: Literal[tuple(ATTENTION_KERNELS)] | None = option(
        help="the attention kernel",
        question="Attention kernel?",
        choices=ATTENTION_KERNELS,
        derived="flash_attention_2 where flash-attn is installed and the parts allow it, else sdpa",
        advanced=True,
    )
    gradient_checkpointing: Bool | None = option(
        help="recompute activations to save memory, for about a third more time",
        question="Recompute activations to save memory?",
        derived="true only where the run does not fit without",
        advanced=True,
    )
    report_to: ReportTo = option(
        "none",
        help="where the numbers of metrics.jsonl go as well; one, or a list",
        question="Report to a tracker too?",
        choices={"none": "metrics.jsonl and the report only"} | TRACKERS,
        why="They come with pip install 'llm-lab[tracking]'. Without the key nothing of them is imported or asked.",
        advanced=True,
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that are named, each once."""
        named = (self.report_to,) if isinstance(self.report_to, str) else self.report_to
        return tuple(name for name in dict.fromkeys(named) if name != "none")


class Train(TrainLoop, TrainSteps):
    """The run itself. A step is one optimizer update."""

    document_mask: Bool = option(
        False,
        help="attention stays within a document; else a row's documents see those before them",
        question="Keep attention within documents?",
        why="Rows are cut from one long text, so a row may hold several documents, parted by the end-of-text token. "
        "With the mask that token opens the next document, which sees nothing before it; positions begin anew. It "
        "costs some speed: the fastest kernels take no mask. Helps where documents are much shorter than max_length.",
        advanced=True,
    )
    compile: Bool | None = option(
        help="torch.compile",
        question="Compile the model?",
        derived="true where it pays: a compiler is there and the run is long enough",
        advanced=True,
    )


class Samples(Group):
    """Texts written at every evaluation, always from the same prompts."""

    prompts: tuple[str, ...] = option(
        ("",),
        help="what the samples start from; empty: from nothing",
        question="Prompts of the samples?",
        advanced=True,
    )
    max_new_tokens: Int = option(
        80, help="length of a sample, in tokens", question="Tokens in a sample?", ge=1, le=100_000, advanced=True
    )
    temperature: Float = option(
        0.8,
        help="0: always the likeliest token",
        question="Temperature of the samples?",
        ge=0.0,
        le=10.0,
        advanced=True,
    )


def _model_kind(value: Any) -> str:
    if isinstance(value, dict):
        return next((kind for kind in ("config", "checkpoint") if kind in value), "parts")
    return {ModelConfig: "config", ModelCheckpoint: "checkpoint"}.get(type(value), "parts")


def _named(value: Any, default: str) -> str:
    if isinstance(value, dict):
        return str(value.get("name", default))
    return getattr(value, "name", default)


def _tokenizer_kind(value: Any) -> str:
    return "trained" if isinstance(value, dict | BpeTokenizer) else "named"


Model = Annotated[
    Annotated[ModelParts, Tag("parts")]
    | Annotated[ModelConfig, Tag("config")]
    | Annotated[ModelCheckpoint, Tag("checkpoint")],
    Discriminator(_model_kind),
]
Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[AdamW8bit, Tag("adamw_8bit")]
    | Annotated[Muon, Tag("muon")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[Sophia, Tag("sophia")]
    | Annotated[Adafactor, Tag("adafactor")],
    Discriminator(lambda value: _named(value, "muon")),
]
Tokenizer = Annotated[
    Annotated[str, Tag("named")] | Annotated[BpeTokenizer, Tag("trained")], Discriminator(_tokenizer_kind)
]


class StageRecipe(Group):
    """What every stage's recipe has."""

    stage: Literal[tuple(STAGES)] = option(..., help="what is done", choices=STAGES)
    name: str | None = option(
        help="the run's folder: checkpoints/<name>/",
        question="Name of the run?",
        derived="the recipe file's name",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
    )
    seed: Int = option(1337, help="same seed, same result", question="Seed?", ge=0, le=2**32 - 1, advanced=True)
    device: Literal[tuple(DEVICES)] = option(
        "cuda",
        help="where it runs",
        question="Where does it run?",
        choices=DEVICES,
        why="Training is made for bf16 on CUDA. The CPU rehearsal runs the same code at toy size: to learn, to test a "
        "recipe, to make a first model.",
    )


class PretrainRecipe(StageRecipe):
    """Pretraining: the next token of raw text."""

    stage: Literal["pretrain"] = option("pretrain", help="what is done", choices={"pretrain": STAGES["pretrain"]})
    model: Model = option(
        ModelParts(),
        help="parts, {config: a config.json}, or {checkpoint: weights to go on from}",
    )
    tokenizer: Tokenizer | None = option(
        help="bytes, {bpe: entries}, a folder, or a name on the Hub",
        derived="a checkpoint's own; else from model.size: bytes for nano, a BPE above",
    )
    data: tuple[DataSource, ...] = option(..., help="the texts, each with its weight", min_length=1)
    when_exhausted: Literal[tuple(WHEN_EXHAUSTED)] = option(
        "repeat",
        help="what happens when a set has been read to its end",
        question="When a set has been read to its end?",
        choices=WHEN_EXHAUSTED,
        why="Up to about four epochs repeated text is nearly as good as new (Muennighoff et al. 2023). With stop, "
        "max_steps is cut beforehand to what the sets give, and the learning rate follows the shorter run. A stream's "
        "end can't be known: there the run ends when it comes, wherever the learning rate is then.",
        advanced=True,
    )
    validation: Validation = option(Validation(), help="what is kept from training, to measure on")
    optimizer: Optimizer = option(Muon(), help="how weights follow gradients")
    scheduler: Scheduler = option(Scheduler(), help="the learning rate over the run")
    train: Train = option(Train(), help="the run itself")
    samples: Samples = option(Samples(), help="texts written at every evaluation")
    score: Score | None = option(help="held-out prompts that are answered and scored at every evaluation")
