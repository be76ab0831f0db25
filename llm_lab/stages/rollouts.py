"""What GRPO and PPO share: prompts and rewards, and TRL's GRPOTrainer with exact resume at any step.

The trainer also keeps the initial model as the reference, has no dropout, and counts positions without padding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import LogitsProcessor
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from llm_lab.data.examples import Example, ExampleSource
from llm_lab.data.mixing import build_example_mix
from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.run_measures import answer_measures
from llm_lab.evaluation.score import columns_of, encode_prompts, own_sampling_off
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.hf.conversations import encode_prompt
from llm_lab.recipe.grpo import GrpoOptions, GrpoRecipe
from llm_lab.recipe.ppo import PpoOptions, PpoRecipe
from llm_lab.rewards.build import build_rewards
from llm_lab.rewards.combine import Rewards
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import any_process, first_process_first, process_count
from llm_lab.training.loop import find_local
from llm_lab.training.seat_belts import RewardWatch
from llm_lab.training.sharding import is_sharded, shard
from llm_lab.training.trainer import LabTrainerMixin
from llm_lab.training.tuned_run import (
    Evaluation,
    base_of,
    derive_max_steps,
    load_model_to_train,
    open_data,
    record_parent,
)

Recipe = TypeVar("Recipe", GrpoRecipe, PpoRecipe)
# Metrics of both stages: {TRL's name: name in metrics.jsonl}.
LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "cut_off_share",
}


@dataclass(frozen=True)
class RolloutSetup(Generic[Recipe]):
    """What training on rollouts needs: the recipe with max_steps, the model, the prompts in order, the rewards."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    prompts: list[Example]
    rewards: Rewards
    evaluation: Evaluation
    steps_per_rollout: int

    def trainer_options(
        self, arguments: Callable[..., Any], kind: type, options: GrpoOptions | PpoOptions, **settings: Any
    ) -> dict[str, Any]:
        """Return the keyword arguments of TRL's trainer. settings: arguments of the stage's own class `kind`."""
        columns = columns_of(self.prompts)
        rows = {"prompt": [list(map(dict, example.prompt)) for example in self.prompts], **columns}
        args = arguments(
            kind=kind,
            steps_per_generation=self.steps_per_rollout,
            max_completion_length=options.max_completion_length,
            temperature=options.temperature,
            reward_weights=self.rewards.weights,
            shuffle_dataset=False,  # already shuffled; a resume continues in the same order
            disable_dropout=True,
            include_num_input_tokens_seen=False,  # TRL would count generated tokens too
            **settings,
        )
        return {
            "args": args,
            "reward_funcs": self.rewards.trl_functions(),
            "train_dataset": Dataset.from_dict(rows),
            "processing_class": self.tokenizer,
        }


def set_up_rollouts(
    recipe: Recipe,
    folder: RunFolder,
    listener: Listener,
    *,
    answer_length: int,
    answers_per_prompt: int,
    steps_per_rollout: int,
    updates_per_rollout: int,
) -> RolloutSetup[Recipe]:
    """Load the model, the rewards and the prompts that fit.

    steps_per_rollout: batches that are generated at once. updates_per_rollout: optimizer steps made on them.
    """
    with first_process_first():
        examples = open_data(recipe, folder, listener)
        model, tokenizer = load_model_to_train(recipe, folder, listener)
    record_parent(recipe, folder, model)
    terms = [term.model_dump() for term in recipe.rewards]
    rewards = build_rewards(terms, device=recipe.device, find_model=find_local)
    for term in rewards.terms:
        listener(Notice(f"reward: {term.name} × {term.weight:g}{f', {term.about}' if term.about else ''}"))
    room = recipe.train.max_length - answer_length
    sets = [
        _prompts_that_fit(rows, tokenizer, room, source, listener)
        for source, rows in zip(examples.sources, examples.train, strict=True)
    ]
    rewards.check_columns(columns_of([example for rows in sets for example in rows]))
    recipe = derive_max_steps(recipe, sum(map(len, sets)), folder, listener)
    rows = recipe.train.per_device_train_batch_size * process_count() * steps_per_rollout
    rollouts = -(-recipe.train.max_steps // updates_per_rollout)
    order = build_example_mix(
        sets,
        [source.weight for source in recipe.data],
        num_samples=rollouts * rows // answers_per_prompt,
        seed=recipe.seed,
    )
    for source, epochs in zip(examples.sources, order.epochs(), strict=True):
        answers = f"{answers_per_prompt} outputs" if answers_per_prompt > 1 else "one output"
        listener(Notice(f"{source.key}: {epochs:.2f} epochs over the run, {answers} per prompt"))
    measures = answer_measures(recipe, folder, listener, model, tokenizer, examples.validation)
    evaluation = Evaluation(folder, measures)
    return RolloutSetup(recipe, model, tokenizer, list(order), rewards, evaluation, steps_per_rollout)


def _prompts_that_fit(
    rows: Sequence[Example], tokenizer: Any, room: int, source: ExampleSource, listener: Listener
) -> list[Example]:
    """Return the prompts that leave room for an answer, and warn about the others. Raises UserError if none does."""
    accepted = encode_prompts(tokenizer, rows, source.key, listener)
    kept = [example for example, ids in accepted if len(ids) <= room]
    if len(kept) < len(accepted):
        listener(
            RunWarning(
                f"{source.key}: {len(accepted) - len(kept):,} of {len(rows):,} prompts are longer than "
                f"{room:,} tokens, which leaves no room for an output: skipped"
            )
        )
    if not kept:
        if not accepted:
            raise UserError(Problem(f"{source.key}.path", "the chat template accepts none of the prompts", source.path))
        why = f"all prompts are too long: train.max_length leaves {room:,} tokens for them next to the output"
        fix = "Use a larger train.max_length or a smaller max_completion_length."
        raise UserError(Problem(f"{source.key}.path", why, value=source.path, fix=fix))
    return kept


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer for a model that is already loaded; args.beta weights the KL to this model in its initial state."""

    def __init__(self, *, model: Any, args: Any, **kwargs: Any):
        at_once = args.generation_batch_size // args.num_generations
        prompts = kwargs["train_dataset"]
        if len(prompts) < at_once:  # TRL would train for 0 steps
            raise UserError(
                Problem(
                    "train.per_device_train_batch_size",
                    f"there are {len(prompts):,} prompts, but each step samples outputs for {at_once:,} of them",
                    fix="Use more prompts or smaller batches.",
                )
            )
        beta, args.beta = args.beta, 0.0  # TRL would load the reference from config._name_or_path
        reference = None
        if beta and not is_unchanged_by_adapter(model):
            reference = copy.deepcopy(model)
        super().__init__(model=model, args=args, **kwargs)
        args.beta = self.beta = beta  # without a reference model, TRL uses the model with its adapter disabled
        if reference is not None:
            reference.eval().requires_grad_(False)
            add_fused_lm_head(
                base_of(reference), temperature=self.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32
            )
            add_position_ids(reference)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            shard(reference, base_of(reference), args)
        disable_dropout(self.model)
        add_position_ids(self.model)

    # Prompts and generation

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return _EpochSampler(
            lambda: int(self.state.epoch or 0),
            data_source=dataset if dataset is not None else self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL would take missing settings, such as min_p, from the model's own generation config.
        model, rows = self.accelerator.unwrap_model(self.model), len(prompt_ids)
        first = self.accelerator.process_index * rows
        draws = Draws(self.args.seed, self.state.global_step, range(first, first + rows), self.temperature)
        # PEFT's generate() bypasses the wrapper's autocast
        with own_sampling_off(model), drawing(model, draws), self.accelerator.autocast():
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    # Checkpoints

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        cycle = self.args.steps_per_generation * self.num_iterations
        if self._buffered_inputs is None or self._step % cycle == 0:
            return  # the next step generates a new rollout
        tensors = {
            f"{index}.{name}": tensor.detach().clone().contiguous()
            for index, batch in enumerate(self._buffered_inputs)
            for name, tensor in batch.items()
            if tensor is not None
        }
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # other processes may get here before the first one
        save_file(tensors, self._rollout_file(output_dir), metadata={"step": str(self._step)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        files = sorted(Path(checkpoint).glob("rollout-*.safetensors"), key=_process_of) if checkpoint else []
        if not files:
            return
        share, shares = self.accelerator.process_index, self.accelerator.num_processes
        if len(files) == shares:  # the same number of processes: each takes its own rows, with the same padding
            files, share, shares = files[share : share + 1], 0, 1
        of_each, step = [], 0
        for file in files:
            found: dict[int, dict[str, torch.Tensor]] = {}
            with safe_open(file, framework="pt") as stored:
                step = int(stored.metadata()["step"])
                for key in stored.keys():  # noqa: SIM118 (not a dict)
                    index, name = key.split(".", 1)
                    found.setdefault(int(index), {})[name] = stored.get_tensor(key).to(self.accelerator.device)
            of_each.append([found[index] for index in sorted(found)])
        self._step = step * self.args.steps_per_generation // len(of_each[0])
        in_order = [batch for some in zip(*of_each, strict=True) for batch in some]
        self._buffered_inputs = self._share_of(in_order, share, shares)

    def _share_of(self, rollout: list[dict[str, Any]], share: int, shares: int) -> list[dict[str, Any]]:
        """Return a process's batches of a rollout that `shares` processes divide among them."""
        return divide(rollout, self.args.steps_per_generation * shares)[share::shares]

    def _rollout_file(self, folder: str) -> Path:
        return Path(folder) / f"rollout-{self.accelerator.process_index}.safetensors"


class Draws(LogitsProcessor):
    """Draws the next token of each row with a random number that depends on seed, step, row and position.

    So a step has the same outputs with any number of processes. rows: their numbers among the rows of all processes.
    temperature: for sampling, which has no filters.
    """

    def __init__(self, seed: int, step: int, rows: Sequence[int], temperature: float):
        self._sources = [np.random.Generator(np.random.PCG64([seed, step, row])) for row in rows]
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        numbers = torch.tensor([[source.random()] for source in self._sources], dtype=torch.float64)
        # In float64: in float32, the rounding of a sum over a large vocabulary is much larger than the probability of a
        # rare token.
        sums = (scores.float() / self._temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
        places = numbers.to(scores.device, non_blocking=True) * sums[:, -1:]
        drawn = torch.searchsorted(sums, places, right=True).clamp(max=scores.shape[1] - 1)
        # Leave `generate` only this token to choose.
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


@contextmanager
def drawing(model: Any, draws: Draws) -> Iterator[None]:
    """Let a model's `generate` sample its tokens with `draws`.

    The processes of a sharded model compute together: each continues until all of them have finished their outputs.
    """
    before = vars(model).get("generate")  # for a sharded model, Trainer's wrapper that gathers weights
    own, together = model.generate, is_sharded(model)

    def generate(*args: Any, **options: Any) -> Any:
        return own(*args, **options, logits_processor=[draws], synced_gpus=together)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


def _process_of(file: Path) -> int:
    return int(file.stem.removeprefix("rollout-"))


def divide(batches: list[dict[str, torch.Tensor]], count: int) -> list[dict[str, torch.Tensor]]:
    """Return the rows of a rollout in a different number of batches, in the same order.

    Each process pads to its own length: prompts on the left, everything else on the right. Here all get the same width.
    """
    divided: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, first in batches[0].items():
        if first.ndim:
            width = max(batch[name].shape[-1] for batch in batches) if first.ndim > 1 else 0
            on_the_left = name.startswith("prompt")
            rows = [_padded(batch[name], width, on_the_left) for batch in batches]
            parts = torch.cat(rows).chunk(count) if len(rows) != count else rows
        else:
            parts = (first,) * count  # one value for the whole rollout
        for batch, part in zip(divided, parts, strict=True):
            batch[name] = part
    return divided


def _padded(rows: torch.Tensor, width: int, on_the_left: bool) -> torch.Tensor:
    missing = width - rows.shape[-1] if rows.ndim > 1 else 0
    return nn.functional.pad(rows, (missing, 0) if on_the_left else (0, missing)) if missing else rows


class LabRolloutTrainer(LabTrainerMixin, RolloutTrainer):
    """RolloutTrainer for one run folder, with prompts encoded as in chat."""

    logged: ClassVar[dict[str, str]] = LOGGED
    stops_on_collapse = False
    collapsed = False
    _belts: RewardWatch | None = None

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return RolloutTrainer._get_train_sampler(self, dataset)  # not sequential: a prompt has several answers

    def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [encode_prompt(self.processing_class, prompt) for prompt in prompts], None, {}

    def loss_of_longest_batch(self) -> torch.Tensor:
        rows, answer = self.args.per_device_train_batch_size, self.max_completion_length
        shape = (rows, self.run.facts()["recipe"]["train"]["max_length"])
        self.longest_tokens = rows * shape[1]
        ids = torch.randint(0, self.model.config.get_text_config().vocab_size, shape, device=self.args.device)
        logps, _, _ = self._get_per_token_logps_and_entropies(
            self.model, ids, torch.ones_like(ids), answer, compute_entropy=True
        )
        return logps.mean()

    def record(self, row: dict[str, Any]) -> None:
        super().record(row)
        if "loss" not in row:
            return
        if self._belts is None:
            self._belts = RewardWatch(self.run.facts().get("warnings", ()))
        found = list(self._belts.saw({"step": self.state.global_step, **row}))
        for text in found:
            self.listener(RunWarning(text))
        if self.stops_on_collapse and any_process(bool(found)):
            self.collapsed = self.control.should_training_stop = self.control.should_save = True

    def extra_metrics(self) -> dict[str, Any]:
        collected = self._metrics["train"]
        terms = {
            f"reward/{key.split('/')[1]}": sum(values) / len(values)
            for key, values in collected.items()
            if key.startswith("rewards/") and key.endswith("/mean") and values
        }
        found = super().extra_metrics()
        return found | (terms if len(terms) > 1 else {})


class _EpochSampler(RepeatSampler):
    """TRL's sampler, with an order that depends only on seed and epoch; TRL's own order restarts on resume."""

    def __init__(self, epoch: Callable[[], int], **kwargs: Any):
        super().__init__(**kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self._epoch())
        return super().__iter__()


def is_unchanged_by_adapter(model: nn.Module) -> bool:
    """Return whether a model has an adapter that changes nothing yet, so that its base is the initial model."""
    changes = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    return bool(changes) and not any(parameter.any() for parameter in changes)


def disable_dropout(model: nn.Module) -> None:
    """Switch off all dropout, including attention dropout: its noise would change probability ratios."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # plain numbers, passed to the attention function
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def add_position_ids(model: nn.Module) -> None:
    """Count positions from the first real token, as generate() does; TRL passes none for left-padded prompts."""
    if "position_ids" not in inspect.signature(base_of(model).forward).parameters:
        return

    def add_positions(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if kwargs.get("fused_lm_head") and mask is not None:
            kwargs["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        return args, kwargs

    model.register_forward_pre_hook(add_positions, with_kwargs=True)
