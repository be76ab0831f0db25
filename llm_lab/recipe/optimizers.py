"""The optimizers of a recipe. They have default learning rates for pretraining, and none for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag, create_model

from llm_lab.errors import Problem

from .fields import Bool, Float, Group, Int, Key, option
from .stage import Values

OPTIMIZERS = {
    "muon": "orthogonalized momentum for matrices, AdamW for the rest; fewest steps",
    "adamw": "the standard",
    "adamw_8bit": "AdamW with 8-bit moments, a quarter of their memory; requires CUDA and bitsandbytes",
    "lion": "sign of the momentum; half of AdamW's memory, a smaller learning rate",
    "sophia": "momentum over estimated curvature, clipped; an extra pass every k steps",
    "adafactor": "factored second moments, which take almost no memory",
}


def _name(default: str) -> Any:
    return option(
        default,
        help="the optimizer",
        choices=OPTIMIZERS,
        question="Which optimizer?",
        why="In our measurements (nano) Muon needed the fewest steps; most published results use AdamW. Lion and "
        "Adafactor save memory. Sophia costs an extra pass every k steps. Each optimizer has its own scale of learning "
        "rates, so the default learning rate changes with it.",
    )


def _learning_rate(default: float, why: str) -> Any:
    return option(default, help="peak learning rate", question="Learning rate?", why=why, gt=0.0, le=10.0)


def _weight_decay(default: float, why: str | None = None) -> Any:
    return option(
        default,
        help="weight decay of matrices; norms, biases and embeddings have none",
        question="Weight decay?",
        why=why,
        ge=0.0,
        le=10.0,
        advanced=True,
    )


def _cautious() -> Any:
    return option(
        False,
        help="decay only weights that the update moves toward zero, not those that it moves away from zero",
        question="Cautious weight decay?",
        why="Chen et al. (2025): the decay no longer works against the update, so a larger one does less harm; in "
        "published speed records about 1 % fewer steps. It costs a copy of the decayed weights during a step.",
        advanced=True,
    )


def _betas(default: tuple[float, float], what: str) -> Any:
    return option(default, help=f"{what}: decay rates of the two moments", question=f"{what}: betas?", advanced=True)


Beta = Annotated[float, Field(strict=True, ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(strict=True, gt=0.0)]
_EPSILON = "added to the denominator, for numerical stability"


class AdamW(Group):
    """AdamW (Loshchilov & Hutter 2017)."""

    name: Literal["adamw"] = _name("adamw")
    learning_rate: Float = _learning_rate(
        1e-3, "1e-3 to 3e-3 below 10 M parameters, 6e-4 at 124 M, 3e-4 at 1 B: larger models need a smaller one."
    )
    betas: tuple[Beta, Beta] = _betas((0.9, 0.95), "AdamW")
    eps: Float = option(1e-8, help=_EPSILON, question="AdamW: epsilon?", gt=0.0, advanced=True)
    weight_decay: Float = _weight_decay(0.1)
    cautious_weight_decay: Bool = _cautious()


class AdamW8bit(Group):
    """AdamW with blockwise 8-bit moments (Dettmers et al. 2021), by bitsandbytes on CUDA."""

    name: Literal["adamw_8bit"] = _name("adamw_8bit")
    learning_rate: Float = _learning_rate(
        1e-3, "As for AdamW. The moments of hidden matrices are quantized to 8 bits in blocks of 256; others are not."
    )
    betas: tuple[Beta, Beta] = _betas((0.9, 0.95), "AdamW")
    eps: Float = option(1e-8, help=_EPSILON, question="AdamW: epsilon?", gt=0.0, advanced=True)
    weight_decay: Float = _weight_decay(0.1)
    cautious_weight_decay: Bool = _cautious()


class Muon(Group):
    """Muon (Jordan et al. 2024): orthogonalized momentum for hidden matrices, AdamW for the rest."""

    name: Literal["muon"] = _name("muon")
    learning_rate: Float = _learning_rate(
        0.02,
        "For the hidden matrices. 0.02 works from nano to small: each update is orthogonal, so its size does not "
        "depend on the gradient.",
    )
    momentum: Float = option(
        0.95, help="momentum of the hidden matrices", question="Momentum?", ge=0.0, lt=1.0, advanced=True
    )
    nesterov: Bool = option(True, help="Nesterov momentum", question="Nesterov?", advanced=True)
    ns_steps: Int = option(
        5, help="Newton-Schulz iterations", question="Newton-Schulz steps?", ge=1, le=20, advanced=True
    )
    weight_decay: Float = _weight_decay(0.01)
    cautious_weight_decay: Bool = _cautious()
    normalized: Bool = option(
        False,
        help="NorMuon: divide the update of each neuron by a moving average of its size",
        question="Normalize the update of each neuron (NorMuon)?",
        why="Li et al. (2025): orthogonal updates still differ in size from neuron to neuron. It costs one number per "
        "neuron, and gave slightly lower losses in published speed records.",
        advanced=True,
    )
    neuron_beta: Float = option(
        0.95,
        help="with normalized: decay rate of the moving average of each neuron's update",
        question="NorMuon: decay rate?",
        ge=0.0,
        lt=1.0,
        advanced=True,
    )
    adamw_learning_rate: Float = option(
        3e-3,
        help="learning rate for embeddings, head, norms and biases",
        question="Learning rate for embeddings, head and norms?",
        gt=0.0,
        le=10.0,
        advanced=True,
    )
    adamw_betas: tuple[Beta, Beta] = _betas((0.9, 0.95), "AdamW part")
    adamw_eps: Float = option(1e-8, help=_EPSILON, question="AdamW part: epsilon?", gt=0.0, advanced=True)


class Lion(Group):
    """Lion (Chen et al. 2023): every weight moves by the learning rate, along the sign of the momentum."""

    name: Literal["lion"] = _name("lion")
    learning_rate: Float = _learning_rate(
        2e-4, "3 to 10 times smaller than for AdamW: every weight moves by the full learning rate in each step."
    )
    betas: tuple[Beta, Beta] = _betas((0.9, 0.99), "Lion")
    weight_decay: Float = _weight_decay(0.5, "3 to 10 times as large as for AdamW, because the learning rate is small.")
    cautious_weight_decay: Bool = _cautious()


class Sophia(Group):
    """Sophia-G (Liu et al. 2023): momentum over a Gauss-Newton-Bartlett estimate of curvature, clipped."""

    name: Literal["sophia"] = _name("sophia")
    learning_rate: Float = _learning_rate(8e-4, "About 0.8 times AdamW's, as its authors advise.")
    betas: tuple[Beta, Beta] = _betas((0.96, 0.99), "Sophia")
    rho: Float = option(
        0.05,
        help="scale of the curvature; a larger rho clips less",
        question="Rho?",
        why="Tune it until 10 to 50 % of the weights are not clipped; metrics.jsonl logs this as unclipped_share.",
        gt=0.0,
        le=10.0,
        advanced=True,
    )
    k: Int = option(
        10,
        help="steps between two estimates of the curvature",
        question="Steps between two estimates of the curvature (k)?",
        why="Each estimate costs one more forward and backward pass: with k = 10 and one batch per step about "
        "10 % more time.",
        ge=1,
        le=10_000,
        advanced=True,
    )
    weight_decay: Float = _weight_decay(0.2, "The authors' value for language models.")
    cautious_weight_decay: Bool = _cautious()


class Adafactor(Group):
    """Adafactor (Shazeer & Stern 2018), as in transformers: row and column statistics replace the second moments."""

    name: Literal["adafactor"] = _name("adafactor")
    learning_rate: Float = _learning_rate(
        0.02, "With scale_parameter it is relative: a weight matrix moves by this share of its own size."
    )
    scale_parameter: Bool = option(
        True,
        help="scale updates by the size of the weights",
        question="Scale updates by the size of the weights?",
        advanced=True,
    )
    decay_rate: Float = option(
        0.8,
        help="at step t, the second moment averages over about t ** decay_rate steps",
        question="Decay rate?",
        gt=0.0,
        le=1.0,
        advanced=True,
    )
    clip_threshold: Float = option(
        1.0,
        help="maximum root mean square of an update",
        question="Maximum root mean square of an update?",
        gt=0.0,
        advanced=True,
    )
    beta1: Beta | None = option(
        help="momentum; null: no momentum, which saves memory", question="Momentum (empty: none)?", advanced=True
    )
    eps: tuple[Positive, Positive] = option(
        (1e-30, 1e-3),
        help="two numbers: one is added to squared gradients; the other is the least root mean square of a matrix "
        "that scale_parameter uses",
        question="The two epsilons?",
        advanced=True,
    )
    weight_decay: Float = _weight_decay(0.0, "None in the paper.")


GROUPS: tuple[type[Group], ...] = (AdamW, AdamW8bit, Muon, Lion, Sophia, Adafactor)


def optimizer_of(values: Any, default: str) -> str:
    """Return the optimizer that an `optimizer` group names."""
    return str(values.get("name", default)) if isinstance(values, dict) else getattr(values, "name", default)


Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[AdamW8bit, Tag("adamw_8bit")]
    | Annotated[Muon, Tag("muon")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[Sophia, Tag("sophia")]
    | Annotated[Adafactor, Tag("adafactor")],
    Discriminator(lambda value: optimizer_of(value, "muon")),
]


def pretraining_rate(name: str, key: str = "learning_rate") -> float:
    """Return an optimizer's default for a key in pretraining: its learning rate, or another of its rates."""
    return next(group.model_fields[key].default for group in GROUPS if group.model_fields["name"].default == name)


def _without_rates(group: type[Group]) -> type[Group]:
    """Return an optimizer's group whose learning rates are derived from the stage: fine-tuning needs smaller ones."""
    changed: dict[str, Any] = {
        name: (
            Float | None,
            option(
                None,
                help=info.description or "",
                question=Key(name, info).question,
                derived="the default of pretraining × 0.02 for SFT, × 0.01 for reward models, × 0.001 for DPO, GRPO "
                "and PPO; ten times that with LoRA; larger for models narrower than 2,048",
                gt=0.0,
                le=10.0,
                advanced=Key(name, info).meta.get("advanced", False),
            ),
        )
        for name, info in group.model_fields.items()
        if name.endswith("learning_rate")
    }
    return create_model(f"Tune{group.__name__}", __base__=group, __doc__=group.__doc__, **changed)


# Sophia estimates the curvature with pretraining's loss, so it is for pretraining only.
TUNED = {group.model_fields["name"].default: _without_rates(group) for group in GROUPS if group is not Sophia}

if TYPE_CHECKING:
    TuneOptimizer = AdamW | AdamW8bit | Muon | Lion | Adafactor
else:
    TuneOptimizer = Annotated[
        Union[tuple(Annotated[group, Tag(name)] for name, group in TUNED.items())],  # noqa: UP007
        Discriminator(lambda value: optimizer_of(value, "adamw")),
    ]


def eight_bits_require_cuda(values: Values) -> Iterator[Problem]:
    """Yield a problem for 8-bit moments on a CPU: their kernels in bitsandbytes require CUDA."""
    if values.get("device") == "cpu" and (values.get("optimizer") or {}).get("name") == "adamw_8bit":
        why, fix = "8-bit moments require a CUDA GPU", "Use adamw, or a machine with a GPU and device=cuda."
        yield Problem("optimizer.name", why, value="adamw_8bit", fix=fix)
