"""Check on the GPU that Muon, after resuming from saved state, takes the same step as without the interruption.

python -m benchmarks.gpu.muon_resume  exits with code 1 if the steps differ.
"""

from __future__ import annotations

import io

import torch

from llm_lab.optim.muon import MuonWithAdamW

from .cuda import require_gpu


def make_optimizer(start: list[torch.Tensor]) -> tuple[MuonWithAdamW, list[torch.nn.Parameter]]:
    """Return an optimizer for a hidden matrix (Muon) and a vector (AdamW) that start at the given values."""
    matrix, vector = parameters = [torch.nn.Parameter(values.clone()) for values in start]
    groups = [{"params": [matrix], "algorithm": "muon"}, {"params": [vector], "algorithm": "adamw"}]
    return MuonWithAdamW(groups), parameters


def resumes_exactly(device: str) -> bool:
    """Whether a step after saving and loading equals the step without it."""
    torch.manual_seed(0)
    optimizer, parameters = make_optimizer([torch.randn(64, 128, device=device), torch.randn(100, device=device)])
    _step(optimizer, parameters)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed, resumed_parameters = make_optimizer([parameter.detach() for parameter in parameters])
    # On one GPU, Trainer loads the optimizer's state to the CPU.
    resumed.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    _step(optimizer, parameters)
    _step(resumed, resumed_parameters)
    return all(torch.equal(a, b) for a, b in zip(parameters, resumed_parameters, strict=True))


def _step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.cos(parameter.detach())
    optimizer.step()


def main() -> None:
    """Print whether Muon resumes."""
    require_gpu()
    if not resumes_exactly("cuda"):
        raise SystemExit("Muon: the step after resuming differs from the step without the interruption")
    print("Muon: the step after resuming equals the step without the interruption")


if __name__ == "__main__":
    main()
