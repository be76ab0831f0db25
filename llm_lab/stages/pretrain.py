"""Pretraining: the next token of raw text. setup -> build -> fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llm_lab.data.block_dataset import StreamTokens, prepare_stream
from llm_lab.data.encoding import TokenSet, default_cache_dir, prepare_tokens, tokenizer_fingerprint
from llm_lab.data.paths import hub_mark
from llm_lab.data.sources import TextSource, open_source
from llm_lab.data.split import split_documents
from llm_lab.data.streams import StreamSource, hold_out, open_stream
from llm_lab.errors import UserError
from llm_lab.events import Listener, Notice, RunWarning, TrainingStarted, progress_of
from llm_lab.hf.load import (
    build_from_config,
    checkpoint_activations,
    config_of_parts,
    load_model,
    quiet_libraries,
    read_config,
)
from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, train_bpe
from llm_lab.optim.schedule import factor_of
from llm_lab.recipe.pretrain import BpeTokenizer, DataSource, PretrainRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first, is_first_process, process_count
from llm_lab.training.loop import (
    Result,
    begin_computing,
    describe_parent,
    drive,
    find_local,
    find_start,
    owes_evaluation,
    require_same_data,
    results_of,
    write_model,
    write_samples,
)

BPE_STREAM_CHARACTERS = 50_000_000


@dataclass(frozen=True)
class TokenizedData:
    """What is read: the sources, their tokens, and the tokenizer."""

    tokenizer: Any
    sources: list[TextSource | StreamSource]
    tokens: list[TokenSet | StreamTokens]


def run(recipe: PretrainRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Train a model as the resolved recipe says, into the run folder."""
    quiet_libraries()
    with first_process_first():
        texts = setup(recipe, folder, listener)
    model = build(recipe, texts.tokenizer, listener)
    if is_first_process():
        folder.update(parameters=sum(parameter.numel() for parameter in model.parameters()))
        if hasattr(recipe.model, "checkpoint"):
            folder.update(parent=describe_parent(find_local(recipe.model.checkpoint)))
    return fit(recipe, folder, listener, texts, model, resume=resume)


def open_sources(recipe: PretrainRecipe) -> list[TextSource | StreamSource]:
    """Open every data source; of streams, keep the head. UserError with the problems of all of them."""
    sources, problems = [], []
    for index, source in enumerate(recipe.data):
        try:
            sources.append(_open(source, f"data.{index}", recipe))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return sources


def _open(source: DataSource, key: str, recipe: PretrainRecipe) -> TextSource | StreamSource:
    named = {"subset": source.subset, "split": source.split, "text_column": source.text_column}
    if not source.streaming:
        return open_source(source.path, key=key, **named)
    kept = recipe.validation.stream_documents if recipe.validation.fraction > 0 else 0
    return hold_out(open_stream(source.path, key=key, **named), kept)


def setup(recipe: PretrainRecipe, folder: RunFolder, listener: Listener) -> TokenizedData:
    """Open the data, make or load the tokenizer, and tokenise once."""
    sources = open_sources(recipe)
    require_same_data(sources, folder)
    tokenizer = make_tokenizer(recipe, sources, folder, listener)
    tokens = tokenise(recipe, sources, tokenizer, listener)
    if is_first_process():
        data = [{"path": source.path, "fingerprint": source.fingerprint, **hub_mark(source.path)} for source in sources]
        folder.update(data=data)
    return TokenizedData(tokenizer, sources, tokens)


def tokenise(
    recipe: PretrainRecipe, sources: Sequence[TextSource | StreamSource], tokenizer: Any, listener: Listener
) -> list[TokenSet | StreamTokens]:
    """Return the tokens of every source, split into training and validation."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokens: list[TokenSet | StreamTokens] = []
    for source in sources:
        if isinstance(source, StreamSource):
            found = prepare_stream(source, tokenizer)
        else:
            found = prepare_tokens(
                source,
                tokenizer,
                tokenizer_fingerprint=fingerprint,
                fraction=recipe.validation.fraction,
                take=recipe.validation.from_,
                max_length=recipe.train.max_length,
                cache_dir=default_cache_dir(),
                progress=progress_of(listener, f"tokenising {source.key}"),
            )
        listener(Notice(f"{source.key}: {found.description}"))
        tokens.append(found)
    return tokens


def make_tokenizer(
    recipe: PretrainRecipe, sources: Sequence[TextSource | StreamSource], folder: RunFolder, listener: Listener
) -> Any:
    """Return the recipe's tokenizer; a BPE is trained on the training part of the text, once a run."""
    wanted = recipe.tokenizer
    if wanted == "bytes":
        return make_byte_tokenizer()
    if not isinstance(wanted, BpeTokenizer):
        checkpoint = getattr(recipe.model, "checkpoint", None)
        return load_tokenizer(find_local(wanted) if wanted == checkpoint else wanted)
    kept = folder.path / "tokenizer"
    if (kept / "tokenizer.json").exists():
        return load_tokenizer(kept)

    def training_texts() -> Any:
        for source in sources:
            if isinstance(source, StreamSource):
                yield from _beginning(source)
                continue
            part, _ = split_documents(
                source.documents, fraction=recipe.validation.fraction, take=recipe.validation.from_
            )
            yield from part()

    listener(Notice(f"tokenizer: training a BPE of {wanted.bpe:,} entries on the training text"))
    for source in sources:
        if isinstance(source, StreamSource):
            listener(Notice(f"tokenizer: of {source.path} it reads the first {BPE_STREAM_CHARACTERS:,} characters"))
    tokenizer = train_bpe(training_texts(), wanted.bpe)
    if len(tokenizer) < wanted.bpe:
        listener(Notice(f"tokenizer: the text gave {len(tokenizer):,} entries, fewer than {wanted.bpe:,}"))
    tokenizer.save_pretrained(kept)
    return tokenizer


def _beginning(source: StreamSource) -> Iterator[str]:
    """Yield the texts that a BPE is trained on where the whole can't be read."""
    characters = 0
    for piece in source.training_pieces():
        yield piece.text
        characters += len(piece.text)
        if characters >= BPE_STREAM_CHARACTERS:
            return


def build(recipe: PretrainRecipe, tokenizer: Any, listener: Listener) -> Any:
    """Build or load the model, in float32, on the recipe's device, with the tokenizer's ids."""
    begin_computing(recipe)
    kernel, model = recipe.train.attn_implementation, recipe.model
    if hasattr(model, "checkpoint"):
        built = load_model(find_local(model.checkpoint), attn_implementation=kernel)
    elif hasattr(model, "config"):
        config = read_config(model.config)
        if config.vocab_size != len(tokenizer):
            listener(Notice(f"model: vocab_size is {len(tokenizer):,}, the tokenizer's, not {config.vocab_size:,}"))
            config.vocab_size = len(tokenizer)
        built = build_from_config(config, attn_implementation=kernel)
    else:
        config = config_of_parts(recipe.model.model_dump(by_alias=True), len(tokenizer))
        built = build_from_config(config, attn_implementation=kernel)
    if built.get_input_embeddings().num_embeddings < len(tokenizer):
        raise UserError(
            f"model: its vocabulary has {built.get_input_embeddings().num_embeddings:,} entries, "
            f"the tokenizer {len(tokenizer):,}. Take the tokenizer that belongs to it."
        )
    set_special_tokens(built, tokenizer)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(built)
    count = sum(parameter.numel() for parameter in built.parameters())
    listener(Notice(f"model: {count:,} parameters, {type(built).__name__}"))
    return built.to(recipe.device)


def fit(
    recipe: PretrainRecipe, folder: RunFolder, listener: Listener, texts: TokenizedData, model: Any, *, resume: bool
) -> Result:
    """Train, evaluate and save; returns the last evaluation's numbers."""
    import torch

    from llm_lab.optim.build import build_optimizer
    from llm_lab.training.document_mask import mask_documents
    from llm_lab.training.pretrain_data import begin_reading
    from llm_lab.training.pretrain_trainer import PretrainTrainer
    from llm_lab.training.tracking import Tracking
    from llm_lab.training.trainer import Interruption, training_arguments

    train, start = recipe.train, find_start(folder, resume=resume)
    if train.document_mask:
        mask_documents(model, texts.tokenizer.eos_token_id)
    reading = begin_reading(recipe, texts, start.checkpoint, listener)
    train = train.model_copy(update={"max_steps": reading.steps})
    if reading.exhausted and is_first_process():
        folder.update(exhausted=reading.exhausted)
    evaluation = Evaluation(recipe, folder, listener, texts, model)
    arguments = training_arguments(
        folder.steps_path,
        device=recipe.device,
        seed=recipe.seed,
        train=train,
        eval_on_start=owes_evaluation(start, evaluation, train.eval_steps),
    )
    trainer = PretrainTrainer(
        compile_loss=train.compile,
        dtype=train.dtype,
        curvature_every=getattr(recipe.optimizer, "k", None),
        run=folder,
        listener=listener,
        interruption=Interruption(),
        eval_every=train.eval_steps,
        tokens_per_step=reading.rows_per_step * train.max_length,
        wall_seconds_before=start.wall_seconds,
        save_total_limit=train.save_total_limit,
        tracking=Tracking(train.trackers, folder, listener, first_step=start.step),
        evaluate_step=evaluation.measure,
        save=partial(save_model, model, tokenizer=texts.tokenizer),
        build_optimizer=partial(build_optimizer, options=recipe.optimizer),
        learning_rate_factor=factor_of(reading.scheduler, train.max_steps),
        reading=reading,
        model=model,
        args=arguments,
        train_dataset=reading.dataset,
    )
    idle = torch.cuda.device_count() - process_count() if recipe.device == "cuda" else 0
    if idle > 0:
        listener(RunWarning(f"{idle} more GPUs are idle: start with --nproc {idle + process_count()} to train on all"))
    listener(TrainingStarted(max_steps=train.max_steps, first_step=start.step, facts=folder.facts()))
    if train.compile:
        listener(Notice("compiling the model: the first steps take a while longer"))
    try:
        finished = drive(
            trainer,
            start,
            evaluation,
            listener,
            max_steps=train.max_steps,
            has_ended=lambda step: reading.has_ended or reading.ends_before(step + 1),
        )
    finally:
        reading.dataset.close()
    if trainer.is_world_process_zero():
        if reading.exhausted:
            folder.update(exhausted=reading.exhausted)
        folder.update(mix=reading.facts(trainer.state.global_step))
        write_model(folder, partial(save_model, model, tokenizer=texts.tokenizer))
    return Result("done" if finished else "stopped", results_of(folder, trainer.state.global_step))


def make_scorer(recipe: PretrainRecipe, listener: Listener, tokenizer: Any, model: Any) -> Any:
    """Return what scores the model's answers to held-out prompts, before it was ever taught to answer."""
    from llm_lab.evaluation.score import Scorer

    return Scorer(
        recipe.score,
        (),
        tokenizer,
        context=model.config.max_position_embeddings,
        device=recipe.device,
        dtype=recipe.train.dtype,
        seed=recipe.seed,
        listener=listener,
    )


def held_out_of(tokens: Sequence[TokenSet | StreamTokens], max_tokens: int) -> tuple[list[Any], float]:
    """Return what is measured of each source's validation part, and how many bytes of text that is."""
    each = max(1, max_tokens // len(tokens))
    measured = [part for part in tokens if len(part.validation) > 1]
    # The bytes of a part are taken in proportion: token counts and byte counts are known for the whole.
    size = sum(part.validation_bytes * min(1.0, each / len(part.validation)) for part in measured)
    return [part.validation[:each] for part in measured], size


class Evaluation:
    """Held-out loss and samples of one run."""

    def __init__(
        self, recipe: PretrainRecipe, folder: RunFolder, listener: Listener, texts: TokenizedData, model: Any
    ) -> None:
        self.recipe, self.folder, self.listener, self.texts, self.model = recipe, folder, listener, texts, model
        self.held_out, self.held_out_bytes = held_out_of(texts.tokens, recipe.validation.max_tokens)
        self.measured_at: int | None = None
        self.scorer = make_scorer(recipe, listener, texts.tokenizer, model) if recipe.score is not None else None

    def measure(self, step: int) -> dict[str, float] | None:
        """Return eval_loss (nats per token) and bits_per_byte, and write the samples."""
        from llm_lab.training.measure import total_loss

        row = None
        if self.held_out:
            train = self.recipe.train
            nats, count = total_loss(
                self.model,
                self.held_out,
                max_length=train.max_length,
                rows=train.per_device_train_batch_size,
                device=self.recipe.device,
                dtype=train.dtype,
                progress=progress_of(self.listener, "evaluating"),
            )
            row = {"eval_loss": nats / count, "bits_per_byte": nats / math.log(2) / self.held_out_bytes}
        if self.scorer is not None:
            row = (row or {}) | self.scorer.measure(self.model)[0]
        self.measured_at = step
        self.write_samples(step)
        return row

    def write_samples(self, step: int) -> None:
        from llm_lab.training.measure import write_sample

        if not is_first_process():
            return
        wanted = self.recipe.samples
        written = {
            prompt: write_sample(
                self.model,
                self.texts.tokenizer,
                prompt,
                max_new_tokens=wanted.max_new_tokens,
                temperature=wanted.temperature,
                seed=self.recipe.seed,
                dtype=self.recipe.train.dtype,
            )
            for prompt in wanted.prompts
        }
        write_samples(self.folder, self.listener, step, written, whole=True)

    def done_at(self, step: int) -> bool:
        """Tell whether this step was evaluated already (before a resume, say)."""
        # The file alone would not do: another process may look before the first one has written.
        return (
            not self.held_out
            or self.measured_at == step
            or any(row["step"] == step and "eval_loss" in row for row in self.folder.metrics())
        )
