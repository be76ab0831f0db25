"""Pretraining on raw text, of a new model or a checkpoint: setup -> build -> fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from llm_lab.data.paths import hub_mark
from llm_lab.data.sources import TextSource
from llm_lab.data.split import split_documents
from llm_lab.data.streams import StreamSource
from llm_lab.errors import UserError
from llm_lab.estimate.compatibility import describe_architecture
from llm_lab.evaluation.score import Scorer, generating, own_sampling_off
from llm_lab.events import Listener, Notice, RunWarning, TrainingStarted, progress_of
from llm_lab.hf.configs import config_of_parts, read_config
from llm_lab.hf.load import (
    build_from_config,
    checkpoint_activations,
    context_of,
    has_learned_positions,
    load_model,
    quiet_libraries,
    scale_residual_projections,
)
from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, save_tokenizer, train_bpe
from llm_lab.optim.factory import build_optimizer
from llm_lab.optim.schedule import decay_factor_of, factor_of
from llm_lab.recipe.parts import ModelParts
from llm_lab.recipe.pretrain import BpeTokenizer, PretrainRecipe
from llm_lab.runs.disk import staged_folder
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first, is_first_process, process_count
from llm_lab.runs.samples import last_samples
from llm_lab.training.expert_use import counting_experts, expert_metrics
from llm_lab.training.loop import (
    Result,
    describe_parent,
    find_local,
    find_start,
    must_evaluate_first,
    require_same_data,
    run_loop,
    set_seed_and_precision,
    write_model,
    write_samples,
)
from llm_lab.training.loss import TotalLoss, autocast, total_loss
from llm_lab.training.pretrain_data import (
    TokenizedData,
    open_sources,
    plan_reading,
    tokenize_sources,
    validation_tokens,
)
from llm_lab.training.pretrain_trainer import PretrainTrainer, mask_documents
from llm_lab.training.seat_belts import learning_rate_scale
from llm_lab.training.sharding import is_sharded
from llm_lab.training.tracking import Tracking
from llm_lab.training.trainer import Interruption, training_arguments
from llm_lab.training.weight_average import WeightAverage

BPE_STREAM_CHARACTERS = 50_000_000
MEASURED = {"eval_loss", "eval_completion_length"}  # one of them is in the row of every evaluation


def run(recipe: PretrainRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Pretrain a model into the run folder. recipe: resolved."""
    quiet_libraries()
    with first_process_first():
        data = setup(recipe, folder, listener)
    model = build(recipe, data.tokenizer, listener)
    if is_first_process():
        folder.update(parameters=sum(parameter.numel() for parameter in model.parameters()))
        if hasattr(recipe.model, "checkpoint"):
            folder.update(parent=describe_parent(find_local(recipe.model.checkpoint)))
    return fit(recipe, folder, listener, data, model, resume=resume)


def setup(recipe: PretrainRecipe, folder: RunFolder, listener: Listener) -> TokenizedData:
    """Open the data, make or load the tokenizer, and tokenize once."""
    sources = open_sources(recipe)
    require_same_data(sources, folder)
    tokenizer = make_tokenizer(recipe, sources, folder, listener)
    tokens = tokenize_sources(recipe, sources, tokenizer, listener)
    if is_first_process():
        facts = [
            {"path": source.path, "fingerprint": source.fingerprint, **hub_mark(source.path)} for source in sources
        ]
        folder.update(data=facts)
    return TokenizedData(tokenizer, sources, tokens)


def make_tokenizer(
    recipe: PretrainRecipe, sources: Sequence[TextSource | StreamSource], folder: RunFolder, listener: Listener
) -> Any:
    """Return the recipe's tokenizer. A BPE is trained on the training split, once per run."""
    wanted = recipe.tokenizer
    if wanted == "bytes":
        return make_byte_tokenizer()
    if not isinstance(wanted, BpeTokenizer):
        checkpoint = getattr(recipe.model, "checkpoint", None)
        return load_tokenizer(find_local(wanted) if wanted == checkpoint else wanted)
    kept = folder.path / "tokenizer"
    if (kept / "tokenizer.json").exists():
        return load_tokenizer(kept)

    def training_texts() -> Iterator[str]:
        for source in sources:
            if isinstance(source, StreamSource):
                yield from _first_texts(source)
                continue
            part, _ = split_documents(
                source.documents, fraction=recipe.validation.fraction, take=recipe.validation.from_
            )
            yield from part()

    listener(Notice(f"tokenizer: training a BPE with {wanted.bpe:,} entries on the training split"))
    for source in sources:
        if isinstance(source, StreamSource):
            listener(Notice(f"tokenizer: using the first {BPE_STREAM_CHARACTERS:,} characters of {source.path}"))
    tokenizer = train_bpe(training_texts(), wanted.bpe)
    if len(tokenizer) < wanted.bpe:
        listener(
            Notice(f"tokenizer: {len(tokenizer):,} entries instead of {wanted.bpe:,}; the text has no more merges")
        )
    with staged_folder(kept) as staged:
        save_tokenizer(tokenizer, staged)
    return tokenizer


def _first_texts(source: StreamSource) -> Iterator[str]:
    """Yield the first texts of a stream, to train a BPE on."""
    characters = 0
    for piece in source.training_pieces():
        yield piece.text
        characters += len(piece.text)
        if characters >= BPE_STREAM_CHARACTERS:
            return


def build(recipe: PretrainRecipe, tokenizer: Any, listener: Listener) -> Any:
    """Build or load the model in float32 on the recipe's device, with the special tokens of the tokenizer."""
    set_seed_and_precision(recipe)
    kernel, model = recipe.train.attn_implementation, recipe.model
    if hasattr(model, "checkpoint"):
        built = load_model(find_local(model.checkpoint), attn_implementation=kernel)
    elif hasattr(model, "config"):
        config = read_config(model.config)
        if config.vocab_size != len(tokenizer):
            listener(Notice(f"model: vocab_size is {len(tokenizer):,} as in the tokenizer, not {config.vocab_size:,}"))
            config.vocab_size = len(tokenizer)
        built = build_from_config(config, attn_implementation=kernel)
    else:
        assert isinstance(model, ModelParts)
        config = config_of_parts(model.model_dump(by_alias=True), len(tokenizer))
        built = build_from_config(config, attn_implementation=kernel)
        if model.num_experts:
            scale_residual_projections(built)
    if built.get_input_embeddings().num_embeddings < len(tokenizer):
        raise UserError(
            f"model: its vocabulary has {built.get_input_embeddings().num_embeddings:,} entries, "
            f"the tokenizer has {len(tokenizer):,}. Use the tokenizer of this model."
        )
    set_special_tokens(built, tokenizer)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(built)
    count = sum(parameter.numel() for parameter in built.parameters())
    listener(Notice(f"model: {count:,} parameters, architecture {describe_architecture(built.config.to_dict())}"))
    return built.to(recipe.device)


def fit(
    recipe: PretrainRecipe, folder: RunFolder, listener: Listener, data: TokenizedData, model: Any, *, resume: bool
) -> Result:
    """Train, evaluate and save; returns the last value of each metric."""
    train, start = recipe.train, find_start(folder, resume=resume)
    if train.document_mask:
        mask_documents(model, data.tokenizer.eos_token_id)
    progress = plan_reading(recipe, data, start.checkpoint, listener)
    train = train.model_copy(update={"max_steps": progress.steps})
    if progress.exhausted and is_first_process():
        folder.update(exhausted=progress.exhausted)
    average = None if train.ema_decay is None else WeightAverage(model, train.ema_decay)
    evaluation = PretrainEvaluation(recipe, folder, listener, data, model, average)
    arguments = training_arguments(
        folder.steps_path,
        device=recipe.device,
        seed=recipe.seed,
        train=train,
        eval_on_start=must_evaluate_first(start, evaluation, train.eval_steps),
    )
    trainer = PretrainTrainer(
        compile_loss=train.compile,
        document_mask=train.document_mask,
        dtype=train.dtype,
        curvature_every=getattr(recipe.optimizer, "k", None),
        average=average,
        run=folder,
        listener=listener,
        interruption=Interruption(),
        eval_every=train.eval_steps,
        tokens_before=lambda step: progress.rows.before(step) * train.max_length,
        wall_seconds_before=start.wall_seconds,
        save_total_limit=train.save_total_limit,
        tracking=Tracking(train.trackers, folder, listener, first_step=start.step),
        evaluate_step=evaluation.measure,
        save=partial(save_model, model, tokenizer=data.tokenizer),
        build_optimizer=partial(build_optimizer, options=recipe.optimizer),
        learning_rate_factor=factor_of(progress.scheduler, train.max_steps, scale=learning_rate_scale(folder)),
        weight_decay_factor=decay_factor_of(progress.scheduler, train.max_steps),
        data_progress=progress,
        model=model,
        args=arguments,
        train_dataset=progress.to_train_on,
    )
    idle = torch.cuda.device_count() - process_count() if recipe.device == "cuda" else 0
    if idle > 0:
        listener(RunWarning(f"{idle} more GPUs are idle: use --nproc {idle + process_count()} to train on all of them"))
    listener(
        TrainingStarted(
            train.max_steps, start.step, folder.facts(), folder.metrics(), samples=last_samples(folder, whole=True)
        )
    )
    if train.compile:
        listener(Notice("compiling the model: the first steps take longer"))
    try:
        finished = run_loop(
            trainer,
            start,
            evaluation,
            listener,
            max_steps=train.max_steps,
            has_ended=lambda step: progress.has_ended or progress.ends_before(step + 1),
        )
    finally:
        progress.dataset.close()
    if trainer.is_world_process_zero():
        if progress.exhausted:
            folder.update(exhausted=progress.exhausted)
        folder.update(mix=progress.facts(trainer.state.global_step))
    with average.applied() if average else nullcontext():
        write_model(folder, model, partial(save_model, model, tokenizer=data.tokenizer))
    status, results = "done" if finished else "stopped", folder.results_at(trainer.state.global_step)
    return Result(status, results, trainer.interruption.requested)


class PretrainEvaluation:
    """Validation loss, scores on held-out prompts, and samples of a pretraining run."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        folder: RunFolder,
        listener: Listener,
        data: TokenizedData,
        model: Any,
        average: WeightAverage | None = None,
    ) -> None:
        self.average = average
        self.recipe, self.folder, self.listener, self.model = recipe, folder, listener, model
        self.tokenizer = data.tokenizer
        self.held_out, self.held_out_bytes = validation_tokens(data.tokens, recipe.validation.max_tokens)
        self.measured_at: int | None = None
        device, dtype = recipe.device, recipe.train.dtype
        self.scorer = Scorer.of(recipe, (), data.tokenizer, model, device=device, dtype=dtype, listener=listener)

    def measure(self, step: int) -> dict[str, float] | None:
        """Return eval_loss (nats per token), bits_per_byte and scores, and write the samples.

        With an average of the weights, all of them are measured on the average, and raw_eval_loss on the weights.
        """
        if self.average is None:
            return self._measure(step)
        raw = {}
        if self.held_out:
            total = self._loss()
            raw = {"raw_eval_loss": total.nats / total.tokens}
        with self.average.applied():
            return (self._measure(step) or {}) | raw or None

    def _loss(self) -> TotalLoss:
        train = self.recipe.train
        return total_loss(
            self.model,
            self.held_out,
            max_length=train.max_length,
            rows=train.per_device_train_batch_size,
            device=self.recipe.device,
            dtype=train.dtype,
            separator=self.tokenizer.eos_token_id,
            progress=progress_of(self.listener, "evaluating"),
        )

    def _measure(self, step: int) -> dict[str, float] | None:
        row: dict[str, float] = {}
        if self.held_out:
            with counting_experts(self.model) as counts:
                total = self._loss()
            bits = total.text_nats / math.log(2)
            row = {"eval_loss": total.nats / total.tokens, "bits_per_byte": bits / self.held_out_bytes}
            row |= expert_metrics(counts)
        if self.scorer is not None:
            row |= self.scorer.measure(self.model)[0]
        self.measured_at = step
        if is_first_process() or is_sharded(self.model):
            samples = {prompt: self._generate(prompt) for prompt in self.recipe.samples.prompts}
            write_samples(self.folder, self.listener, step, samples, whole=True)
        return row or None

    @torch.no_grad()
    def _generate(self, prompt: str) -> str:
        """Return the model's continuation of a prompt, the same for the same seed; keeps the run's random state."""
        model, tokenizer, wanted = self.model, self.tokenizer, self.recipe.samples
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        inputs = torch.tensor([ids or [start]], device=model.device)
        cuda = [model.device] if model.device.type == "cuda" else []
        most = wanted.max_new_tokens
        if has_learned_positions(model):
            inputs = inputs[:, -(context_of(model) or 1) + 1 :]
            most = min(most, (context_of(model) or 1) - inputs.shape[1])
        sampling: dict[str, Any] = {"do_sample": False}
        if wanted.temperature > 0:
            sampling = {"do_sample": True, "temperature": wanted.temperature, "top_k": 0}
        kept_state = torch.random.fork_rng(devices=cuda)
        with (
            kept_state,
            generating(model),
            own_sampling_off(model),
            autocast(model.device.type, self.recipe.train.dtype),
        ):
            torch.manual_seed(self.recipe.seed)
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=most,
                pad_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **sampling,
            )
        return tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True)

    def done_at(self, step: int) -> bool:
        """Return whether this step has been evaluated, in this process or before a resume."""
        # The file alone is not enough: another process may read it before the first process has written it.
        return (
            not (self.held_out or self.scorer)
            or self.measured_at == step
            or any(row["step"] == step and MEASURED & row.keys() for row in self.folder.metrics())
        )
