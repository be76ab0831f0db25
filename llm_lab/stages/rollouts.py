"""GRPOTrainer with what our runs promise: exact resume at any step, a reference that is the start policy, no
dropout, and positions that padding does not shift. GRPO and PPO build on it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from llm_lab.errors import Problem, UserError


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer for a model that is loaded already; args.beta weighs the KL to the model as it is given."""

    def __init__(self, *, model: Any, args: Any, **kwargs: Any):
        at_once = args.generation_batch_size // args.num_generations
        prompts = kwargs["train_dataset"]
        if len(prompts) < at_once:  # TRL would train for 0 steps
            raise UserError(
                Problem(
                    "train.per_device_train_batch_size",
                    f"there are {len(prompts):,} prompts, and a rollout takes {at_once:,} at once",
                    fix="Give more prompts, or take smaller batches.",
                )
            )
        beta, args.beta = args.beta, 0.0  # TRL would load a reference from wherever config._name_or_path points
        reference = None
        if beta and kwargs.get("peft_config") is None and not starts_as_its_base(model):
            reference = copy.deepcopy(model)
        super().__init__(model=model, args=args, **kwargs)
        args.beta = self.beta = beta  # without a reference model, TRL switches the adapter off
        if reference is not None:
            reference.eval().requires_grad_(False)
            add_fused_lm_head(
                _base_of(reference), temperature=self.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32
            )
            give_positions(reference)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        switch_off_dropout(self.model)
        give_positions(self.model)

    # What is read

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

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        base = _base_of(self.accelerator.unwrap_model(self.model))
        # What the model's own file says of sampling (a min_p, suppressed tokens) would fill in what TRL leaves out,
        # and answers would come from another distribution than that of the log-probabilities.
        own, base.generation_config = base.generation_config, GenerationConfig()
        try:
            with self.accelerator.autocast():  # PEFT generates past the wrapping that would do this
                return super()._generate_single_turn(*args, **kwargs)
        finally:
            base.generation_config = own

    # What is written

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        cycle = self.args.steps_per_generation * self.num_iterations
        if self._buffered_inputs is None or self._step % cycle == 0:
            return  # the next step generates anew
        tensors = {
            f"{index}.{name}": tensor.detach().clone().contiguous()
            for index, batch in enumerate(self._buffered_inputs)
            for name, tensor in batch.items()
            if tensor is not None
        }
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # only the first process has made it for sure
        save_file(tensors, self._rollout_file(output_dir), metadata={"step": str(self._step)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = self._rollout_file(checkpoint) if checkpoint is not None else None
        if file is None or not file.exists():
            return
        batches: list[dict[str, torch.Tensor]] = [{} for _ in range(self.args.steps_per_generation)]
        with safe_open(file, framework="pt") as stored:
            self._step = int(stored.metadata()["step"])
            for key in stored.keys():  # noqa: SIM118 (it is no dict)
                index, name = key.split(".", 1)
                batches[int(index)][name] = stored.get_tensor(key).to(self.accelerator.device)
        self._buffered_inputs = batches

    def _rollout_file(self, folder: str) -> Path:
        return Path(folder) / f"rollout-{self.accelerator.process_index}.safetensors"


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends on seed and epoch alone: its own begins again on resume."""

    def __init__(self, epoch: Callable[[], int], **kwargs: Any):
        super().__init__(**kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self._epoch())
        return super().__iter__()


def starts_as_its_base(model: nn.Module) -> bool:
    """Tell whether a model is one with an adapter that changes nothing yet."""
    changes = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    return bool(changes) and not any(parameter.any() for parameter in changes)


def switch_off_dropout(model: nn.Module) -> None:
    """Switch off all dropout, that inside attention too: with it, a policy differs from itself."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # plain numbers, handed to the attention function
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def give_positions(model: nn.Module) -> None:
    """Count positions from the first real token, as generate() does: TRL passes none for left-padded prompts."""
    if "position_ids" not in inspect.signature(_base_of(model).forward).parameters:
        return

    def add_positions(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if kwargs.get("fused_lm_head") and mask is not None:
            kwargs["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        return args, kwargs

    model.register_forward_pre_hook(add_positions, with_kwargs=True)


def _base_of(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
