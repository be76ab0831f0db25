"""Shard a model over the processes of a run (FSDP2, through accelerate), and gather it to save it.

Each process has a part of every weight, of its gradient and of its moments. Checkpoints always contain whole tensors,
in the format of a run with one process, so that a run can be resumed with any number of processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from llm_lab.runs.processes import is_first_process, process_count

FSDP = "fsdp"  # a value of train.distributed


def sharding_options(distributed: str) -> dict[str, Any]:
    """Return the TrainingArguments that shard a model; {} if it is not sharded."""
    if distributed != FSDP or process_count() == 1:
        return {}
    # By default, each process keeps the gradients of the whole model until the last batch of a step.
    divide_each_batch = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    config = {"version": 2, "reshard_after_forward": True}
    return {"fsdp": True, "fsdp_config": config, "accelerator_config": divide_each_batch}


def set_precision(arguments: Any, dtype: str) -> None:
    """Gather weights in the run's precision; sum gradients, and store each process's part, in float32."""
    if arguments.fsdp_plugin_args is not None:
        gathered = torch.bfloat16 if dtype == "bfloat16" else None
        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


def shard_on_a_cpu(trainer: Any) -> None:
    """Let accelerate shard on a CPU too: by default it silently copies the whole model to each process there."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def shard(model: nn.Module, base: Any, arguments: Any, *, exact: nn.Module | None = None) -> None:
    """Shard a model other than the trained one, if the run shards: accelerate supports only one.

    base: the transformers model in it, whose layers are gathered one at a time. arguments: TrainingArguments. exact: a
    part that computes in float32.
    """
    if not arguments.fsdp:
        return
    policy = arguments.fsdp_plugin_args["mixed_precision_policy"]
    if exact is not None:
        fully_shard(exact, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    layers = [module for module in model.modules() if type(module).__name__ in (base._no_split_modules or ())]
    for module in [*layers, model]:
        fully_shard(module, mp_policy=policy, reshard_after_forward=True)


@contextmanager
def without_ends(model: Any) -> Iterator[None]:
    """Let accelerate shard embeddings and head with the model itself, so that they are whole in its forward pass.

    If the head is tied to the embeddings, PEFT adds the trained rows of new tokens in both places.
    """
    if not hasattr(model, "peft_config"):
        yield
        return
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def is_sharded(model: Any) -> bool:
    """Return whether a model is sharded."""
    return isinstance(model, FSDPModule)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module as it was before it was sharded."""
    kind = type(module)
    return kind.__mro__[2] if issubclass(kind, FSDPModule) else kind  # bases: FSDPModule, then the original


def reshard(model: Any) -> None:
    """Drop the whole weights that the last forward pass of a sharded model has kept for a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def as_tensor(value: Any) -> Any:
    """Return a distributed number as a plain tensor; other values unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def whole_weights(model: Any, *, write: bool = False) -> Iterator[None]:
    """Make a sharded model plain inside the context, with whole weights on the CPU. All processes must enter.

    Only the first process gets the values. write: all processes get them, and changes are kept; all must make the same
    changes.
    """
    if not is_sharded(model):
        yield
        return
    reshard(model)
    whole: dict[int, tuple[DTensor, nn.Parameter]] = {}
    places: list[tuple[nn.Module, str, DTensor]] = []
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if not isinstance(parameter, DTensor):
                    continue
                if id(parameter) not in whole:  # tied weights stay tied
                    full = parameter.full_tensor().to("cpu" if write or is_first_process() else "meta")
                    whole[id(parameter)] = parameter, nn.Parameter(full, requires_grad=parameter.requires_grad)
                places.append((module, name, parameter))
    classes = [(module, type(module)) for module in model.modules() if isinstance(module, FSDPModule)]
    hooks = {module: module._load_state_dict_post_hooks for module, _, _ in places}
    for module, name, parameter in places:
        module._parameters[name] = whole[id(parameter)][1]
        module._load_state_dict_post_hooks = OrderedDict()  # FSDP2's hooks expect sharded weights
    for module, _ in classes:
        module.__class__ = plain_type(module)
    try:
        yield
    finally:
        for module, kind in classes:
            module.__class__ = kind
        for module, name, parameter in places:
            module._parameters[name] = parameter
            module._load_state_dict_post_hooks = hooks[module]
    if write:
        with torch.no_grad():
            for parameter, full in whole.values():
                parameter.to_local().copy_(_shard_like(full.detach(), parameter).to_local())


def whole_state(optimizer: Any) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors on the CPU, in the first process; all processes must call this."""

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        return value.full_tensor().to("cpu" if is_first_process() else "meta")

    return tree_map(whole, optimizer.state_dict())


def shard_loaded_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of a sharded model load a state of whole tensors; each process takes its part."""

    def shard(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {
            index: {name: _shard_like(value, parameters[index]) for name, value in of_one.items()}
            for index, of_one in state["state"].items()
        }
        return {**state, "state": parts}

    optimizer.register_load_state_dict_pre_hook(shard)


def _shard_like(value: Any, parameter: torch.Tensor) -> Any:
    """Return this process's part of a whole tensor with a parameter's shape; any other value unchanged."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
