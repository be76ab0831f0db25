"""Sophia-G: the moving mean of gradients over a Gauss-Newton-Bartlett estimate of curvature, clipped."""

from __future__ import annotations

from typing import Any

import torch

EPS = 1e-12


class Sophia(torch.optim.Optimizer):
    """Sophia-G (Liu et al. 2023, algorithm 3, https://arxiv.org/abs/2305.14342).

    theta <- theta - lr * clip(m / max(rho * h, eps), 1), where m is the moving mean of gradients and h that of the
    Hessian's diagonal. The trainer must call `update_hessian` every few steps, with gradients of the loss on labels
    sampled from the model itself: h is not the mean of squared training gradients.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.96, 0.99),
        rho: float = 0.05,
        weight_decay: float = 0.1,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self._state(p) for p in params]
            means, hessians = [s["exp_avg"] for s in states], [s["hessian"] for s in states]
            torch._foreach_lerp_(means, [p.grad for p in params], 1 - group["betas"][0])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            scaled = torch._foreach_mul(hessians, group["rho"])
            torch._foreach_clamp_min_(scaled, EPS)
            updates = torch._foreach_div(means, scaled)
            torch._foreach_clamp_min_(updates, -1.0)
            torch._foreach_clamp_max_(updates, 1.0)
            torch._foreach_add_(params, updates, alpha=-group["lr"])
        return loss

    @torch.no_grad()
    def update_hessian(self, tokens: int) -> None:
        """Update the estimate with the current gradients: h <- beta2 * h + (1 - beta2) * tokens * g * g.

        The gradients must be those of the mean cross-entropy over `tokens` labels drawn from the model's own
        distribution (the Gauss-Newton-Bartlett estimator, section 2.3 of the paper).
        """
        for group in self.param_groups:
            beta = group["betas"][1]
            for p in group["params"]:
                if p.grad is not None:
                    self._state(p)["hessian"].mul_(beta).addcmul_(p.grad, p.grad, value=(1 - beta) * tokens)

    @torch.no_grad()
    def unclipped_share(self) -> float:
        """Return the share of entries that are not clipped; 10 to 50 % is healthy (section 2.2)."""
        free = total = 0
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p)
                if state:
                    inside = state["exp_avg"].abs() < (group["rho"] * state["hessian"]).clamp(min=EPS)
                    free, total = free + int(inside.sum()), total + inside.numel()
        return free / total if total else 0.0

    def _state(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
            state["hessian"] = torch.zeros_like(p)
        return state
