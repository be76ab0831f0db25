"""What a stage is, the keys that every recipe has, and helpers to derive what a recipe leaves out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from llm_lab.errors import Problem
from llm_lab.estimate.cost import Estimate, estimate_model
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.measurements import Measurement
from llm_lab.estimate.parameters import ModelShape, shape_at
from llm_lab.estimate.tuning_cost import ExampleSizes

from .fields import NAME, Group, Int, OneOf, option, value_at

DEVICES = {
    "cuda": "requires a CUDA GPU with bf16 support",
    "cpu": "CPU mode: every stage works, for tiny models",
    "auto": "bf16 CUDA where available, else CPU mode",
}
Values = Mapping[str, Any]
Rule = Callable[[Values], Iterator[Problem]]


class StageRecipe(Group):
    """The keys of every stage's recipe. A stage adds `stage`, a Literal of its own name, and its keys."""

    stage: str = option(..., help="the stage to run")
    name: str | None = option(
        help="name of the run; its folder is checkpoints/<name>/",
        question="Name of the run?",
        derived="the recipe file's name",
        pattern=NAME,
        max_length=100,
    )
    seed: Int = option(
        1337, help="random seed; same seed, same result", question="Seed?", ge=0, le=2**32 - 1, advanced=True
    )
    device: Annotated[str, OneOf(DEVICES)] = option(
        "cuda",
        help="where the stage runs",
        question="Where should it run?",
        choices=DEVICES,
        why="Training is built for bf16 on CUDA. CPU mode runs the same code for tiny models: to learn, to test a "
        "recipe, or to train a first model.",
    )


class PartialRecipe:
    """Recipe values while they are derived, with the reason for each derived value."""

    def __init__(self, values: Values):
        self.values = copy.deepcopy(dict(values))
        self.reasons: dict[str, str] = {}

    def get(self, path: str) -> Any:
        """Return the value at a dotted key, or None."""
        return value_at(self.values, path)

    def fill(self, path: str, value: Any, reason: str) -> None:
        """Set a key that was left out."""
        if self.get(path) is None and value is not None:
            self.set(path, value, reason)

    def set(self, path: str, value: Any, reason: str) -> None:
        """Set a key, replacing any value that it has."""
        node = self.values
        *parents, last = path.split(".")
        for step in parents:
            node = node[step]
        node[last] = value
        self.reasons[path] = reason


def derive_nothing(
    stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None
) -> ModelShape | None:
    """Derive nothing; returns the shape of the recipe's checkpoint, or None if it is not on this machine."""
    return known or shape_at(recipe.get("model.checkpoint") or "")


@dataclass(frozen=True)
class ToEstimate:
    """What a stage's estimate is based on: its values, the model's shape if it is known, and the machine.

    first_step: the step that a resumed run starts from; only later steps are counted. examples: number and lengths of
    the examples, once the data was read. own: what a resumed run measured before.
    """

    values: Values
    shape: ModelShape | None
    machine: Machine
    first_step: int = 0
    examples: ExampleSizes | None = None
    own: Measurement | None = None


def estimate_model_only(stage: Stage, work: ToEstimate) -> Estimate:
    """Estimate a stage that trains nothing: the model in memory and, if it writes one, on disk."""
    writes_model = stage.makes is not None
    device = "cpu" if writes_model else work.values["device"]
    return estimate_model(work.shape, work.machine, device=device, writes_model=writes_model)


# Fills in what the recipe leaves out; returns the model's shape, or None if it is not known yet. The last argument
# is the shape of a checkpoint that an earlier stage will make.
Derive = Callable[["Stage", PartialRecipe, Machine, ModelShape | None], ModelShape | None]
Estimator = Callable[["Stage", ToEstimate], Estimate]


@dataclass(frozen=True)
class Stage:
    """All of a stage that imports quickly. `module` runs it, and is imported only then.

    module: dotted name of a module with run(recipe, folder, listener, *, resume) -> Result; by default the module of
    the same name in llm_lab.stages. rules: checks across keys. derive, estimate: see Derive and Estimator.
    """

    name: str  # in recipes: `stage: sft`
    title: str  # in menus: "Fine-tune (SFT)"
    label: str  # in reports: "SFT"
    about: str  # one line, in the schema, the docs and the menu
    recipe: type[StageRecipe]
    why: str = ""  # what it is for, in a few sentences: the menu's help
    rules: tuple[Rule, ...] = ()
    derive: Derive = derive_nothing
    estimate: Estimator = estimate_model_only
    module: str = ""
    trains: bool = False
    from_scratch: bool = False  # the model may be new; other stages start from a checkpoint
    examples: str | None = None  # the kind of its data: text, conversation, preference or prompt
    makes: str | None = "model"  # model, reward model, or None if the stage writes no model
    accepts_reward_model: bool = False  # whether it can start from a reward model
    takes_adapter: bool = False  # whether it must start from an adapter
    continues: bool = True  # in a pipeline, the next stage starts from the result by default
    made: str = ""  # what a model card says about the result
    loss_unit: str = ""  # "nats per token" if the loss is the cross-entropy of text
    learning_rate_scale: float | None = None  # times the optimizer's default in pretraining; None: 1
    epochs: float | None = None  # passes over the examples if neither epochs nor steps are set
    rows_per_example: str | None = None  # the key that says how many rows of a batch an example becomes
    compares_probabilities: bool = False  # of the same text, so dropout must be off
    estimates_reference: Callable[[Values], bool] = lambda values: False  # whether a frozen copy is in memory too
    has_critic: bool = False  # a second model of the same size is trained
    next_step: str = ""  # how the wizard offers this stage after another
    next: tuple[str, ...] = ()  # stages that the wizard offers afterwards

    @property
    def module_name(self) -> str:
        """The module that runs the stage."""
        return self.module or f"llm_lab.stages.{self.name}"

    @property
    def writes_text(self) -> bool:
        """Whether the result generates text, so that you can chat with it."""
        return self.makes == "model"

    @property
    def measures_loss(self) -> bool:
        """Whether training has a validation loss. Stages that learn from rewards have none."""
        return self.trains and self.examples != "prompt"

    @property
    def has_prompts(self) -> bool:
        """Whether the data has prompts that a model can be scored on."""
        return self.examples in ("conversation", "prompt")

    def has(self, key: str) -> bool:
        """Return whether the recipe has a key at the top level."""
        return key in self.recipe.model_fields


def repeated_sets(values: Values) -> Iterator[Problem]:
    """Yield a problem for each data set that is listed twice."""
    seen: dict[tuple[Any, ...], int] = {}
    for index, source in enumerate(values.get("data") or ()):
        same = tuple(source.get(key) for key in ("path", "subset", "split", "text_column"))
        if same in seen:
            fix = "Remove one." if "weight" not in source else "List it once, with a larger weight."
            why = f"the same dataset is already at data.{seen[same]}"
            yield Problem(f"data.{index}.path", why, value=source.get("path"), fix=fix)
        seen.setdefault(same, index)
