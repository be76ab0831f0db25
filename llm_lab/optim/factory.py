"""Build the torch optimizer that a recipe names. To add an optimizer, add a function to BUILDERS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from llm_lab.recipe.optimizers import Adafactor, AdamW, AdamW8bit, Lion, Muon, Sophia

from .decay import decay_cautiously
from .muon import MuonWithAdamW
from .sophia import Sophia as SophiaOptimizer


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return trainable (hidden matrices, embeddings and head, vectors), each parameter once.

    Embeddings and the output head are matrices by shape only: each row belongs to a token. They are found by their
    role and not by name, so this works for any Hugging Face model. The fused experts of a mixture are matrices, one
    per expert: (experts, rows, columns); their biases (experts, columns) are vectors.
    """
    ends = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for name in ("get_input_embeddings", "get_output_embeddings"):  # PEFT wraps them and adds rows for new tokens
        end = getattr(model, name)() if hasattr(model, name) else None
        ends += [end] if end is not None else []
    # The head of a classifier outputs scores, not hidden states.
    ends += [module for name, module in model.named_modules() if name.rpartition(".")[2] in ("score", "classifier")]
    embedding_ids = {id(parameter) for end in ends for parameter in end.parameters()}
    kernels = {id(p) for module in model.modules() if isinstance(module, _ConvNd) for p in module.parameters()}
    matrices, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embedding_ids:
            embeddings.append(parameter)
        elif parameter.ndim in (2, 3) and id(parameter) not in kernels and not name.endswith("bias"):
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    return matrices, embeddings, vectors


def _groups(*groups: dict[str, Any]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def _build_adamw(model: nn.Module, options: AdamW) -> torch.optim.Optimizer:
    groups = _decay_groups(model, options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=tuple(options.betas), eps=options.eps, fused=True)


def _build_adamw_8bit(model: nn.Module, options: AdamW8bit) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit as AdamW8bitOptimizer
    from bitsandbytes.optim import GlobalOptimManager

    # Gradients of embeddings are sparse and uneven; with 8-bit moments they make training unstable (Dettmers et al.
    # 2021, section 2.3).
    manager = GlobalOptimManager.get_instance()
    manager.initialize()  # forgets the settings of earlier models' parameters
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        manager.register_module_override(module, "weight", {"optim_bits": 32})
    groups = _decay_groups(model, options.weight_decay)
    optimizer = AdamW8bitOptimizer(groups, lr=options.learning_rate, betas=tuple(options.betas), eps=options.eps)
    optimizer.check_overrides()
    manager.module_weight_config_triple.clear()  # otherwise the manager would keep these modules in memory forever
    return optimizer


def _build_muon(model: nn.Module, options: Muon) -> torch.optim.Optimizer:
    matrices, embeddings, vectors = split_parameters(model)
    # GPT-2 stores its matrices transposed, and so do some mixtures of experts.
    transposed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
        for parameter in module.parameters(recurse=False)
    }
    return MuonWithAdamW(
        _groups(
            {
                "params": matrices,
                "transposed": [id(matrix) in transposed for matrix in matrices],
                "algorithm": "muon",
                "lr": options.learning_rate,
                "momentum": options.momentum,
                "nesterov": options.nesterov,
                "ns_steps": options.ns_steps,
                "neuron_beta": options.neuron_beta if options.normalized else None,
                "weight_decay": options.weight_decay,
            },
            {
                "params": embeddings + vectors,
                "algorithm": "adamw",
                "lr": options.adamw_learning_rate,
                "betas": tuple(options.adamw_betas),
                "eps": options.adamw_eps,
                "weight_decay": 0.0,
            },
        )
    )


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices, embeddings, vectors = split_parameters(model)
    return _groups(
        {"params": matrices, "weight_decay": weight_decay}, {"params": embeddings + vectors, "weight_decay": 0.0}
    )


def _build_lion(model: nn.Module, options: Lion) -> torch.optim.Optimizer:
    from lion_pytorch import Lion as LionOptimizer

    groups = _decay_groups(model, options.weight_decay)
    return LionOptimizer(groups, lr=options.learning_rate, betas=tuple(options.betas))


def _build_sophia(model: nn.Module, options: Sophia) -> torch.optim.Optimizer:
    groups = _decay_groups(model, options.weight_decay)
    return SophiaOptimizer(groups, lr=options.learning_rate, betas=options.betas, rho=options.rho)


def _build_adafactor(model: nn.Module, options: Adafactor) -> torch.optim.Optimizer:
    # transformers' version, not torch's: it follows the paper, with update clipping and relative steps.
    from transformers.optimization import Adafactor as AdafactorOptimizer

    return AdafactorOptimizer(
        _decay_groups(model, options.weight_decay),
        lr=options.learning_rate,
        eps=tuple(options.eps),
        clip_threshold=options.clip_threshold,
        decay_rate=-options.decay_rate,
        beta1=options.beta1,
        scale_parameter=options.scale_parameter,
        relative_step=False,  # the recipe has its own schedule
        warmup_init=False,
    )


BUILDERS: dict[str, Callable[[nn.Module, Any], torch.optim.Optimizer]] = {
    "adamw": _build_adamw,
    "adamw_8bit": _build_adamw_8bit,
    "muon": _build_muon,
    "lion": _build_lion,
    "sophia": _build_sophia,
    "adafactor": _build_adafactor,
}


def build_optimizer(model: nn.Module, options: Any) -> torch.optim.Optimizer:
    """Build the optimizer that a recipe names. Weight decay applies to hidden matrices only."""
    optimizer = BUILDERS[options.name](model, options)
    if getattr(options, "cautious_weight_decay", False):
        decay_cautiously(optimizer)
    return optimizer
