"""Muon for hidden matrices and AdamW for everything else, in one optimizer.

A single optimizer, with an algorithm per group, works with any trainer, scheduler and resume.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

# The quintic polynomial of Jordan et al. (2024): steepest at zero, so five steps are enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
NEURON_EPS = 1e-8


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Move the singular values of each matrix toward 1 with Newton-Schulz steps.

    matrices: (count, rows, columns), orthogonalized all at once; returns the same shape in `dtype`.
    Jordan et al. (2024), https://kellerjordan.github.io/posts/muon
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


@functools.cache
def _multiplies_bf16(device_type: str) -> bool:
    """Return whether the hardware multiplies in bf16, which is precise enough here and up to four times as fast."""
    if device_type == "cpu":
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return device_type == "cuda"


def _ahead(grads: list[Tensor], buffers: list[Tensor], momentum: float) -> list[Tensor]:
    """Return Nesterov's momentum, which interpolates between the gradients and their moving means."""
    if not isinstance(grads[0], DTensor):
        return list(torch._foreach_lerp(grads, buffers, momentum))
    ahead = [grad.clone() for grad in grads]  # sharded tensors have this operation only in place
    torch._foreach_lerp_(ahead, buffers, momentum)
    return ahead


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a whole tensor that matches this process's part of a parameter."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


class MuonWithAdamW(torch.optim.Optimizer):
    """Groups with algorithm "muon" take hidden matrices, also several in one 3-D tensor; "adamw" takes anything.

    A Muon step equals torch.optim.Muon's (adjust_lr_fn="original"): momentum, Newton-Schulz, decoupled
    weight decay, and an update scaled by sqrt(max(1, outputs / inputs)). Gradients are not changed.

    neuron_beta (of a group): if set, NorMuon (Li et al. 2025, arXiv:2510.05491): the orthogonal update of each row (of
    each output neuron) is divided by a moving root mean square of its entries. The matrix is then scaled back to its
    previous norm, as in modded-nanogpt, so that learning rates keep their meaning.

    With sharded matrices, every process gathers the momentum, orthogonalizes the whole matrix, and keeps its own part.

    transposed (of a group): for each of its parameters, whether it is stored as (inputs, outputs); default: none is.
    """

    def __init__(self, groups: list[dict[str, Any]]):
        defaults = {
            "lr": 0.02,
            "weight_decay": 0.0,
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "neuron_beta": None,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            assert group["algorithm"] in ("muon", "adamw")
            assert group["algorithm"] == "adamw" or all(p.ndim in (2, 3) for p in group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state, on any device."""
        # torch moves the step counts to the parameters' device only in groups that are marked as fused.
        groups = [{**group, "fused": group["algorithm"] == "adamw"} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            if group["algorithm"] == "muon":
                self._step_muon(group, with_grad)
            elif with_grad:
                self._step_adamw(group, with_grad)
        return loss

    def _step_muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        # Matrices of the same shape form one batch: a few large products instead of many small ones.
        transposed = {id(p) for p, flag in zip(group["params"], group.get("transposed", ()), strict=False) if flag}
        by_shape: dict[tuple[torch.Size, torch.device, bool], list[Tensor]] = defaultdict(list)
        for p in params:
            by_shape[p.shape, p.device, id(p) in transposed].append(p)
        momentum, lr = group["momentum"], group["lr"]
        for (shape, device, is_transposed), alike in by_shape.items():
            grads = [p.grad for p in alike]
            buffers = [self._buffer(p) for p in alike]
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            updates = _ahead(grads, buffers, momentum) if group["nesterov"] else buffers
            dtype = torch.bfloat16 if _multiplies_bf16(device.type) else torch.float32
            stacked = torch.stack([_whole(update) for update in updates])
            directions = orthogonalize(stacked.flatten(0, -3), group["ns_steps"], dtype).to(alike[0].dtype)
            beta = group.get("neuron_beta")  # checkpoints of earlier versions don't have it
            if beta is not None:
                directions = self._normalize(alike, directions.view_as(stacked), beta, is_transposed)
            torch._foreach_mul_(alike, 1 - lr * group["weight_decay"])
            outputs, inputs = reversed(shape[-2:]) if is_transposed else shape[-2:]
            scale = math.sqrt(max(1.0, outputs / inputs))
            moves = [_part_of(move, p) for move, p in zip(directions.view_as(stacked), alike, strict=True)]
            torch._foreach_add_(alike, moves, alpha=-lr * scale)

    def _normalize(self, params: list[Tensor], directions: Tensor, beta: float, is_transposed: bool) -> Tensor:
        """Return NorMuon's directions; updates the moving mean square of each row."""
        inputs = -2 if is_transposed else -1
        squares = directions.square().mean(dim=inputs, keepdim=True)
        for p, square in zip(params, squares, strict=True):
            state = self.state[p]
            if "neuron_square" not in state:
                state["neuron_square"] = torch.zeros_like(square)
            state["neuron_square"].lerp_(square, 1 - beta)
        roots = torch.stack([self.state[p]["neuron_square"] for p in params]).sqrt().add_(NEURON_EPS)
        scaled, axes = directions / roots, (-2, -1)
        return scaled * (directions.norm(dim=axes, keepdim=True) / scaled.norm(dim=axes, keepdim=True).clamp(min=EPS))

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]

    def _step_adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
