"""The pretraining step: token ids in, mean loss out; compiled if that saves time, with document masks on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AttentionMaskInterface, TrainerCallback, masking_utils
from transformers.masking_utils import sdpa_mask

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.machine import find_machine

from .cpu import keep_freed_memory, speed_up_products
from .loop import use_cudnn_attention
from .loss import autocast, balancing_weight, detach_large_head, linear_cross_entropy, next_token_loss, sample_labels
from .pretrain_data import DataProgress
from .trainer import LabTrainer
from .weight_average import WeightAverage

OFFSETS = ("q_offset", "kv_offset")


def collate(places: list[dict[str, np.ndarray] | None]) -> dict[str, torch.Tensor]:
    """Stack blocks into a batch of input_ids and shift_labels, each (rows, max_length); None means a missing row.

    Without attention mask and positions: either would switch attention from its is_causal kernel.
    """
    items = [item for item in places if item is not None]
    return {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]}


def mask_where_needed(**inputs: Any) -> torch.Tensor | None:
    """Return the mask that sdpa needs, None if its own is_causal is enough.

    transformers does the same, but some versions of it and torch build the mask during compilation (torch's
    is_exporting is then True). A mask takes memory and prevents the fastest kernels.
    """
    needed = inputs.get("attention_mask") is not None or not inputs.get("allow_is_causal_skip", True)
    at_start = all(isinstance(inputs.get(name, 0), int) and not inputs.get(name, 0) for name in OFFSETS)
    window = inputs.get("local_size")
    in_window = window is None or inputs["kv_length"] < window
    if not needed and at_start and in_window and inputs["q_length"] == inputs["kv_length"]:
        return None
    return sdpa_mask(**inputs)


@contextmanager
def unpacked_rows() -> Iterator[None]:
    """Stop models from looking for several documents in a row.

    Models in transformers create positions and check whether they restart. During compilation they can't know, so they
    would build a mask for documents that don't exist.
    """
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = _find_no_documents
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def _find_no_documents(position_ids: torch.Tensor) -> None:
    return None


def compiled_loss(*, document_mask: bool = False) -> Callable[..., torch.Tensor]:
    """Return `next_token_loss`, compiled. document_mask: rows contain several documents, marked by positions."""
    # Compiled code is kept per function and not guarded on hooks: without this, a run with document masks would use
    # the code of an earlier run without them in the same process.
    torch.compiler.reset()
    AttentionMaskInterface.register("sdpa", mask_where_needed)
    # dynamic=False: all batches have the same shape, and a second graph would only take time.
    compiled = torch.compile(next_token_loss, dynamic=False)
    if document_mask:
        return compiled

    def loss_of_rows(*args: Any, **options: Any) -> torch.Tensor:
        with unpacked_rows():
            return compiled(*args, **options)

    return loss_of_rows


class PretrainTrainer(LabTrainer):
    """Trains on blocks of equal length, so the mean of the batch means is the mean over all tokens.

    data_progress: what is read over the run. curvature_every: steps between two estimates of the Hessian's diagonal,
    for Sophia. average: the average of the weights, which checkpoints contain.
    """

    loss_is_cross_entropy = True

    def __init__(
        self,
        *,
        compile_loss: bool,
        document_mask: bool,
        dtype: str,
        data_progress: DataProgress | None,
        curvature_every: int | None = None,
        average: WeightAverage | None = None,
        **kwargs: Any,
    ):
        super().__init__(data_collator=collate, **kwargs)
        self._data_progress = data_progress
        if data_progress is not None:
            self.add_callback(data_progress)
        self._loss = compiled_loss(document_mask=document_mask) if compile_loss else next_token_loss
        self._is_compiled = compile_loss
        use_cudnn_attention(compile_loss)
        self._dtype = dtype
        self._balancing = balancing_weight(self.model)
        if self.args.device.type == "cpu":
            keep_freed_memory()
            if dtype == "float32" and not compile_loss:
                speed_up_products(self.model, find_machine().cpu_name)
        self._last_ids: torch.Tensor | None = None
        self._average = average
        if average is not None:
            self.add_callback(average)
        if curvature_every is not None:
            self.add_callback(_CurvatureCallback(self, curvature_every))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = self._last_ids = inputs["input_ids"]
        with detach_large_head(self.model, ids.numel()) as head:
            extra = {"balancing": self._balancing} if self._balancing else {}
            return self._loss(model, ids, inputs["shift_labels"], self.args.device.type, self._dtype, head, **extra)

    def estimate_curvature(self) -> None:
        """Give the optimizer gradients of the loss on labels sampled from the model (Sophia's estimator)."""
        model, ids = self.model_wrapped, self._last_ids
        assert ids is not None  # there was a step before
        if self._is_compiled:
            count = self._backward_of_sampled_labels(model, ids)
        else:
            count = self._backward_of_own_labels(model, ids)
        # Gradients are averaged over the processes, so the estimate is over the tokens of all of them.
        _unwrap(self.optimizer).update_hessian(count * self.args.world_size)
        model.zero_grad()

    def _backward_of_own_labels(self, model: Any, ids: torch.Tensor) -> int:
        with detach_large_head(self.model, ids.numel()) as head, autocast(self.args.device.type, self._dtype):
            output = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
            if head is not None:
                labels = sample_labels(output, head)
                loss = linear_cross_entropy(output, head, labels)
        if head is None:
            labels = torch.distributions.Categorical(logits=output.detach().float()).sample()
            loss = F.cross_entropy(output.float(), labels)
        self.accelerator.backward(loss)
        return labels.numel()

    def _backward_of_sampled_labels(self, model: Any, ids: torch.Tensor) -> int:
        """Sample first, without gradients, then use the compiled step, with the memory and speed of training."""
        device, dtype = self.args.device.type, self._dtype
        with detach_large_head(self.model, ids.numel()) as head:
            with torch.no_grad(), autocast(device, dtype):
                output = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
                if head is not None:
                    labels = sample_labels(output, head)
                else:
                    labels = torch.distributions.Categorical(logits=output.float()).sample()
            loss = self._loss(model, ids, labels.view_as(ids), device, dtype, head)
        self.accelerator.backward(loss)
        return labels.numel()

    def extra_metrics(self) -> dict[str, Any]:
        optimizer = _unwrap(self.optimizer)
        found = {"unclipped_share": optimizer.unclipped_share()} if hasattr(optimizer, "unclipped_share") else {}
        if self._data_progress is not None:
            found |= self._data_progress.metrics(self.state.global_step)
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._data_progress is not None and self.is_world_process_zero():
            self._data_progress.write_stream_states(Path(str(output_dir)), self.state.global_step)
        if self._average is not None and self.is_world_process_zero():
            self._average.save(Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._average is not None:
            self._average.load(Path(resume_from_checkpoint))


class _CurvatureCallback(TrainerCallback):
    """Requests a curvature estimate after the first step and then every `every` steps."""

    def __init__(self, trainer: PretrainTrainer, every: int):
        self.trainer, self.every = trainer, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step - 1) % self.every == 0:
            self.trainer.estimate_curvature()


def _unwrap(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def document_positions(input_ids: torch.Tensor, separator: int) -> torch.Tensor:
    """Return positions (rows, length) that restart at each `separator`, the end-of-text token between documents.

    The separator ends one document as a target and starts the next one as an input. So the first token of a document
    is predicted from the separator alone, as in generation without a prompt.
    """
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    start = torch.where(input_ids == separator, index, 0).cummax(dim=1).values
    return index - start


def mask_documents(model: Any, separator: int) -> Any:
    """Restrict a model's attention to single documents if it gets only input_ids; returns the hook.

    transformers finds the documents of a packed row by positions that restart, if there is no mask and no cache.
    Raises UserError for a model in which a document still influences the next one.
    """

    def add_positions(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = [kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values", "inputs_embeds")]
        if all(value is None for value in given) and kwargs.get("use_cache") is False:
            kwargs = {**kwargs, "position_ids": document_positions(kwargs["input_ids"], separator)}
        return args, kwargs

    if not keeps_documents_apart(model):
        raise UserError(
            Problem(
                "train.document_mask",
                f"{type(model).__name__} does not support document masks: its attention ignores positions that "
                "restart, so documents can still see each other",
                value=True,
                fix="Leave the key out, or use another model or another train.attn_implementation.",
            )
        )
    return model.register_forward_pre_hook(add_positions, with_kwargs=True)


@torch.no_grad()
def keeps_documents_apart(model: Any) -> bool:
    """Return whether documents in one row, marked by positions that restart, do not influence each other.

    Tested by changing the first document of a row: the logits of the second one must stay the same.
    """
    tokens = range(min(16, model.config.get_text_config().vocab_size))
    ones, others, rest = tokens[:4], tokens[4:8], tokens[8:]
    # Two rows with different boundaries, because some kernels apply the boundaries of one row to all rows.
    positions = [[*range(end), *range(len(rest) + 4 - end)] for end in (4, 3)]
    inputs = {"position_ids": torch.tensor(positions, device=model.device), "use_cache": False}
    pairs = ([[*first, *rest], [*first[:3], ones[3], *rest]] for first in (ones, others))
    training = model.training
    model.eval()
    try:
        logits = [
            model(input_ids=torch.tensor(rows, device=model.device), **inputs).logits[:, 4:].float() for rows in pairs
        ]
    except TypeError:  # the model does not accept positions
        return False
    finally:
        model.train(training)
    return bool((logits[0] - logits[1]).abs().max() <= 1e-5 * logits[0].std())
