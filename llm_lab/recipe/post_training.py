"""What the trained stages after pretraining share: examples, LoRA, length, learning rates, memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from llm_lab.errors import Problem, leave_out
from llm_lab.estimate.cached_models import cached_folder
from llm_lab.estimate.cost import Estimate
from llm_lab.estimate.formatting import plural
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.model_library import find_in_library
from llm_lab.estimate.parameters import ModelShape, context_in, guess_shape, read_config_json, shape_at
from llm_lab.estimate.tuning_cost import Work, estimate_tuning

from .fields import DATE, Bool, Derived, Float, Group, Int, OneOf, option, value_at
from .forgetting import Forgetting
from .optimizers import TUNED, TuneOptimizer, pretraining_rate
from .parts import ModelCheckpoint
from .scoring import ANSWER_LENGTH, REWARD_RULES, Columns, RewardTerm, Score, derive_score
from .stage import PartialRecipe, Rule, Stage, StageRecipe, ToEstimate, Values, repeated_sets
from .train_loop import LOOP_RULES, SPLITS, Scheduler, TrainLoop, faster_dtype, fill_intervals

CHAT_TEMPLATES = {
    "own": "the tokenizer's own template; an error if it has none",
    "chatml": "<|im_start|>role ... <|im_end|>: the most common",
    "zephyr": "<|role|> ... : Zephyr's and TinyLlama's",
    "llama3": "<|start_header_id|>role<|end_header_id|> ... <|eot_id|>: Llama 3's",
}
LORA_PRESETS = {
    "minimal": "queries and values: fewest weights",
    "attention_only": "queries, keys, values and output of attention",
    "ffn_only": "the matrices of the feed-forward network",
    "all": "every matrix of the blocks: learns most",
    "custom": "the layers listed in target_modules",
}
MAX_LENGTH = 1024
EVALUATIONS = 5  # in a run that is long enough
EXAMPLES = 8  # per batch
ROLLOUT_PROMPTS = 8  # per step
ROLLOUT_STEPS = 200
VALIDATION_EXAMPLES = {"cpu": 200, "cuda": 1000}
LORA_DROPOUT = 0.05
LORA_SCALE = 10  # an adapter is small and new, so it needs larger steps than all weights
# The values of learning_rate_scale are usual for models of about 1 B parameters. With Adam, the best rate of a
# model's matrices is proportional to 1 / width (Yang et al. 2022, Tensor Programs V, table 3). Learning from rewards
# has a twentieth of SFT's rate at 1 B and needs a larger factor at small widths: at a width of 64, 80 steps of GRPO
# raised the share of correct outputs from 61 % to 76 % with 1 / width, and to 87 % with 1 / width^1.5.
USUAL_WIDTH = 2048
MAX_WIDTH_SCALE = 32.0  # the scale at a width of 64, the smallest that was measured
WIDTH_POWER, WIDTH_POWER_OF_REWARDS = 1.0, 1.5


class ExampleSet(Group):
    """One set of examples."""

    path: str = option(
        ...,
        help="a file, folder or glob (jsonl, json, csv, parquet, arrow), builtin:NAME, or a Hub name",
        question="Which dataset?",
        why="The format is recognized from the first rows: messages, conversations, prompt and completion, "
        "instruction and output, question and answer; for preferences chosen and rejected.",
        min_length=1,
    )
    subset: str | None = option(help="configuration of a Hub dataset", min_length=1)
    split: str = option("train", help="split of a Hub or built-in dataset, or of a folder with splits", min_length=1)
    columns: Columns | None = option(
        help="which column is what; only for columns that are not recognized", derived="recognized from the first rows"
    )
    weight: Float = option(1.0, help="weight in the mix, relative to the other datasets", gt=0.0)


class Lora(Group):
    """LoRA (Hu et al. 2021): small trainable matrices next to the frozen ones."""

    preset: Annotated[str, OneOf(LORA_PRESETS)] = option(
        "minimal",
        help="which layers get an adapter",
        question="Which layers get an adapter?",
        choices=LORA_PRESETS,
        why="More layers learn more and need more memory. `all` with a small r is usually better than `minimal` "
        "with a large one (Dettmers et al. 2023).",
    )
    target_modules: tuple[str, ...] | None = option(
        help="names of the layers, such as q_proj", question="Names of the layers?", when={"lora.preset": ("custom",)}
    )
    r: Int = option(8, help="rank of the adapter's matrices", question="Rank (r)?", ge=1, le=1024)
    alpha: Float = option(
        16.0, help="the adapter is scaled by alpha / r", question="Alpha (scale is alpha / r)?", gt=0.0
    )
    dropout: Float | None = option(
        help="dropout before the adapter",
        question="Dropout in the adapter?",
        derived="0.05; 0 in DPO, GRPO and PPO, which compare probabilities",
        ge=0.0,
        lt=1.0,
        advanced=True,
    )
    use_rslora: Bool = option(
        False, help="scale by alpha / sqrt(r), for large ranks", question="Use rsLoRA scaling?", advanced=True
    )
    use_dora: Bool = option(
        False,
        help="train magnitude and direction separately (DoRA): slightly better, slower",
        question="DoRA?",
        advanced=True,
    )
    load_in_4bit: Bool = option(
        False,
        help="load the frozen base in 4 bits (QLoRA), which requires CUDA and bitsandbytes; "
        "left out: true only where LoRA does not fit with a base in 16 bits",
        question="Base in 4 bits (QLoRA)?",
        advanced=True,
    )


class PromptValidation(Group):
    """Which prompts are held out of training."""

    fraction: Float = option(
        0.1,
        help="share of each dataset that is held out for validation",
        question="What share is held out for validation?",
        ge=0.0,
        le=0.5,
    )
    from_: Annotated[str, OneOf(SPLITS)] = option(
        "random",
        alias="from",
        help="which part is held out",
        question="Which part is held out?",
        choices=SPLITS,
        advanced=True,
    )


class ExampleValidation(PromptValidation):
    """The validation examples, which are held out of training."""

    max_examples: Derived[Int] = option(
        help="maximum number of examples per evaluation",
        question="Maximum number of examples per evaluation?",
        derived="200 on a CPU, 1,000 on a GPU",
        ge=1,
        advanced=True,
    )


class Replies(Group):
    """Answers generated at every evaluation, always to the same prompts."""

    prompts: tuple[str, ...] | None = option(
        help="the prompts of the samples",
        question="Prompts of the samples?",
        derived="the first three held-out prompts",
        advanced=True,
    )
    max_new_tokens: Int = option(
        80,
        help="maximum length of an output, in tokens",
        question="Tokens per sample?",
        ge=1,
        le=100_000,
        advanced=True,
    )
    temperature: Float = option(
        0.0,
        help="sampling temperature; 0: greedy",
        question="Temperature of the samples?",
        ge=0.0,
        le=10.0,
        advanced=True,
    )


class TuneSteps(Group):
    """The length of a run on examples."""

    num_train_epochs: Float | None = option(
        help="epochs over the examples; the number of steps follows from it",
        question="How many epochs?",
        derived="3 for SFT, 1 for reward models and DPO, if max_steps is left out",
        gt=0.0,
    )
    max_steps: Derived[Int] = option(
        help="number of optimizer updates, instead of num_train_epochs",
        question="How many steps (empty: by epochs)?",
        derived="num_train_epochs over the examples; 200 for GRPO and PPO",
        ge=1,
    )
    max_length: Derived[Int] = option(
        help="maximum tokens per example; longer ones are truncated",
        question="Maximum tokens per example?",
        derived="the model's context, at most 1,024",
        ge=2,
    )


class TuneTrain(TrainLoop, TuneSteps):
    """The run itself. A step is one optimizer update."""


ON_COLLAPSE = {
    "warn": "warn and continue",
    "stop": "warn, stop, and keep the checkpoint with the best held-out reward",
}


class TuneRecipe(StageRecipe):
    """The keys of every trained stage after pretraining."""

    model: ModelCheckpoint = option(
        ..., help="the model to start from: {checkpoint: a run, folder, GGUF file or Hub name}"
    )
    chat_template: Annotated[str, OneOf(CHAT_TEMPLATES)] | None = option(
        help="how a conversation is formatted as text",
        question="Which chat template?",
        choices=CHAT_TEMPLATES,
        derived="own where the tokenizer has a template, else chatml",
    )
    template_date: str | None = option(
        help="the date that chat templates write as the current date, such as 2026-11-28",
        derived="the current date, which is kept with the run and its tokenizer",
        pattern=DATE,
        advanced=True,
    )
    data: tuple[ExampleSet, ...] = option(..., help="the datasets of examples, each with its weight", min_length=1)
    validation: PromptValidation = option(PromptValidation(), help="what is held out for validation")
    lora: Lora | None = option(
        help="train a LoRA adapter; null: train all weights; left out: all weights, where they fit in memory"
    )
    optimizer: TuneOptimizer = option(TUNED["adamw"](), help="the optimizer")
    scheduler: Scheduler = option(Scheduler(), help="the learning-rate schedule")
    train: TuneTrain = option(TuneTrain(), help="length, batches, evaluation and precision of the run")


class TalkRecipe(TuneRecipe):
    """The keys of the stages whose result can chat."""

    score: Score | None = option(
        help="outputs for held-out prompts are scored at every evaluation; null: nothing is scored"
    )
    samples: Replies = option(Replies(), help="outputs generated at every evaluation")
    forgetting: Forgetting | None = option(
        help="general text that is measured at every evaluation, to see what the model forgets; null: nothing "
        "is measured"
    )


class RolloutRecipe(TalkRecipe):
    """The keys of the stages that generate answers and learn from their rewards."""

    rewards: tuple[RewardTerm, ...] = option(
        ..., help="the terms of the reward that an output gets, such as [{name: exact_number}]", min_length=1
    )
    score: Score | None = option(
        Score(), help="outputs for held-out prompts are scored at every evaluation; null: nothing is scored"
    )


def max_completion_length() -> Any:
    """Return the option for the maximum length of generated answers."""
    return option(
        help="maximum length of an output, in tokens",
        question="Maximum length of an output, in tokens?",
        why="Most of the time of a step goes into sampling outputs, and it grows with this length. A truncated "
        "output never reaches its answer, so its reward is usually 0.",
        derived=f"{ANSWER_LENGTH}, at most half of train.max_length",
        ge=1,
    )


def sampling_temperature() -> Any:
    """Return the option for the sampling temperature."""
    return option(
        1.0,
        help="sampling temperature, also used for log-probabilities",
        question="Temperature?",
        why="1 samples from the model's own probabilities. Lower values give outputs that differ less, and with them "
        "less to learn from; above 1.2 outputs become odd.",
        gt=0.0,
        le=10.0,
    )


def on_collapse(signs: str) -> Any:
    """Return the option that says what happens if RL training goes wrong. signs: what shows that, in words."""
    return option(
        "warn",
        help=f"what happens if {signs}",
        question="What if RL training goes wrong?",
        choices=ON_COLLAPSE,
        advanced=True,
    )


# --- derived values


def derive_post_training(
    stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None
) -> ModelShape | None:
    """Fill in what the recipe of a trained stage after pretraining leaves out."""
    shape = known or shape_at(recipe.get("model.checkpoint"))
    if recipe.get("lora") is not None:
        off = stage.compares_probabilities
        reason = "this stage compares probabilities, and dropout would add noise" if off else "usual"
        recipe.fill("lora.dropout", 0.0 if off else LORA_DROPOUT, reason)
    _derive_learning_rates(stage, recipe, shape)
    _derive_train(stage, recipe, machine, shape)
    derive_score(stage, recipe, shape)
    return shape


def _derive_learning_rates(stage: Stage, recipe: PartialRecipe, shape: ModelShape | None) -> None:
    name, lora = recipe.get("optimizer.name"), recipe.get("lora") is not None
    width, wider = _width(recipe, shape), _width_scale(stage, recipe, shape)
    scale = learning_rate_scale(stage, recipe, shape)
    training = stage.label if stage.label.isupper() else f"a {stage.label.lower()}"
    reason = f"{scale:g} × {name}'s pretraining rate, as usual for {training} "
    reason += "with LoRA" if lora else "of all weights"
    law = "1 / width" if stage.measures_loss else f"1 / width^{WIDTH_POWER_OF_REWARDS}"
    reason += f"; of this, {wider:g} × for a width of {width:,} (proportional to {law})" if wider > 1 else ""
    for key in ("learning_rate", "adamw_learning_rate") if name == "muon" else ("learning_rate",):
        recipe.fill(f"optimizer.{key}", rounded(pretraining_rate(name, key) * scale), reason)


def learning_rate_scale(stage: Stage, recipe: PartialRecipe, shape: ModelShape | None) -> float:
    """Return the factor by which a fine-tune multiplies the learning rates of pretraining."""
    lora = LORA_SCALE if recipe.get("lora") is not None else 1
    return (stage.learning_rate_scale or 1.0) * lora * _width_scale(stage, recipe, shape)


def _width_scale(stage: Stage, recipe: PartialRecipe, shape: ModelShape | None) -> float:
    width = _width(recipe, shape)
    wider = min(max(1.0, USUAL_WIDTH / width), MAX_WIDTH_SCALE) if width else 1.0
    return float(f"{wider ** (WIDTH_POWER if stage.measures_loss else WIDTH_POWER_OF_REWARDS):.2g}")


def _width(recipe: PartialRecipe, shape: ModelShape | None) -> int | None:
    """Return the hidden size of the model, or None if its config is not on this machine."""
    if shape:
        return shape.hidden_size
    config = read_config_json(recipe.get("model.checkpoint")) or {}
    found = next((config[key] for key in ("hidden_size", "n_embd", "d_model") if config.get(key)), None)
    return found if isinstance(found, int) else None


def rounded(value: float) -> float:
    """Return a number with 6 significant digits."""
    return float(f"{value:.6g}")


def _derive_train(stage: Stage, recipe: PartialRecipe, machine: Machine, shape: ModelShape | None) -> None:
    on_cpu, rollouts = recipe.get("device") == "cpu", not stage.measures_loss
    config = read_config_json(recipe.get("model.checkpoint")) or {}
    longest = (shape and shape.max_position_embeddings) or context_in(config)
    length = min(longest or MAX_LENGTH, MAX_LENGTH)
    recipe.fill("train.max_length", length, "the model's context" if longest == length else f"at most {MAX_LENGTH:,}")
    if on_cpu and stage.examples != "conversation":
        # Ratios and preferences are small differences of log-probabilities, and bf16 would save little time here.
        recipe.fill("train.dtype", "float32", "on a CPU, and this stage learns from small differences")
    recipe.fill("train.dtype", *faster_dtype(machine, shape, on_cpu))
    recipe.fill("train.attn_implementation", "sdpa", "fused, and supports every combination of parts")
    recipe.fill("train.gradient_checkpointing", False, "set to true if you run out of memory")
    _derive_batch(stage, recipe, machine, rollouts, on_cpu)
    if stage.measures_loss:
        most, where = VALIDATION_EXAMPLES[recipe.get("device")], "on a CPU" if on_cpu else "on a GPU"
        recipe.fill("validation.max_examples", most, f"enough to compare models, and fast {where}")
    if rollouts:
        most = max(1, recipe.get("train.max_length") // 2)
        reason = "usual" if most >= ANSWER_LENGTH else "half of train.max_length"
        recipe.fill(f"{stage.name}.max_completion_length", min(ANSWER_LENGTH, most), reason)
    if rollouts and recipe.get("train.num_train_epochs") is None:
        recipe.fill("train.max_steps", ROLLOUT_STEPS, "enough to see whether the reward rises")
    elif recipe.get("train.max_steps") is None:
        recipe.fill("train.num_train_epochs", stage.epochs or 1.0, f"usual for {stage.name}")
    if recipe.get("train.max_steps") is not None:
        fill_intervals(recipe, evaluations=EVALUATIONS)


def _derive_batch(stage: Stage, recipe: PartialRecipe, machine: Machine, rollouts: bool, on_cpu: bool) -> None:
    rows, reason = EXAMPLES, "usual"
    if rollouts:
        rows = rows_per_example(stage, recipe.values) * max(1, ROLLOUT_PROMPTS // machine.processes)
        reason = f"{ROLLOUT_PROMPTS} prompts per step"
    recipe.fill("train.per_device_train_batch_size", rows, reason)
    batches = 1 if on_cpu or rollouts else max(1, 2 // machine.processes)
    reason = "one batch per step" if batches == 1 else "a safe choice"
    recipe.fill("train.gradient_accumulation_steps", batches, reason)


def rows_per_example(stage: Stage, values: Values) -> int:
    """Return how many rows of a batch one example becomes: GRPO's answers per prompt, 1 elsewhere."""
    return (value_at(values, stage.rows_per_example) if stage.rows_per_example else None) or 1


def fill_steps(stage: Stage, values: Values, *, examples: int, processes: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return (values, reasons) with the steps of a recipe that counts in epochs, once its examples are counted."""
    recipe = PartialRecipe(values)
    epochs = recipe.get("train.num_train_epochs")
    if recipe.get("train.max_steps") is None:
        batch = recipe.get("train.per_device_train_batch_size") * recipe.get("train.gradient_accumulation_steps")
        rows = batch * processes
        steps = max(1, round(epochs * examples * rows_per_example(stage, values) / rows))
        count = f"{plural(epochs, 'epoch')} of {plural(examples, 'example')}"
        recipe.fill("train.max_steps", steps, f"{count}, {plural(rows, 'sequence')} per step")
        fill_intervals(recipe, evaluations=EVALUATIONS)
    return recipe.values, recipe.reasons


def estimate(stage: Stage, work: ToEstimate) -> Estimate:
    """Estimate memory, time and disk. The steps follow from the number of examples, if they were counted."""
    values = work.values
    if work.examples:
        values = fill_steps(stage, values, examples=work.examples.training, processes=work.machine.processes)[0]
    checkpoint = values["model"]["checkpoint"]
    known = find_in_library(checkpoint)
    shape = work.shape or guess_shape(read_config_json(checkpoint) or {}) or (known.shape if known else None)
    if shape is None and (downloaded := cached_folder(checkpoint)):
        shape = shape_at(downloaded) or guess_shape(read_config_json(downloaded) or {})
    options = values.get(stage.name) or {}
    return estimate_tuning(
        values,
        shape,
        work.machine,
        Work(
            in_pairs=stage.examples == "preference",
            has_reference=stage.estimates_reference(values),
            has_critic=stage.has_critic,
            generates=0 if stage.measures_loss else options["max_completion_length"],
            answers=options.get("num_generations", 1),
            epochs=options.get("num_ppo_epochs", 1),
            updates_per_epoch=options.get("num_mini_batches", 1),
            whole_logits=stage.examples == "conversation",
            has_head=stage.makes != "reward model",
        ),
        work.examples,
        work.first_step,
        work.own,
    )


# --- rules


def _custom_layers_are_named(values: Values) -> Iterator[Problem]:
    lora = values.get("lora") or {}
    if lora.get("preset") == "custom" and not lora.get("target_modules"):
        fix = "List them, as in [q_proj, v_proj], or use another preset."
        yield Problem("lora.target_modules", "lora.preset=custom requires the names of the layers", fix=fix)


def _four_bits_require_cuda(values: Values) -> Iterator[Problem]:
    if (values.get("lora") or {}).get("load_in_4bit") and values.get("device") == "cpu":
        fix = "Leave it out: on a CPU the base is not quantized."
        yield Problem("lora.load_in_4bit", "a base in 4 bits requires a CUDA GPU", value=True, fix=fix)


def _length_is_set_once(values: Values) -> Iterator[Problem]:
    train = values.get("train") or {}
    epochs, steps = train.get("num_train_epochs"), train.get("max_steps")
    if epochs is not None and steps is not None:
        why = f"train.max_steps = {steps} already sets the length of the run"
        yield Problem("train.num_train_epochs", why, value=epochs, fix="Remove one of the two.")


POST_TRAINING_RULES: tuple[Rule, ...] = (
    *LOOP_RULES,
    *REWARD_RULES,
    repeated_sets,
    _custom_layers_are_named,
    _four_bits_require_cuda,
    _length_is_set_once,
)


def no_adapter_dropout(stage: str) -> Rule:
    """Return a rule against dropout in the adapter, for a stage that compares probabilities of the same text."""

    def adapter_has_no_dropout(values: Values) -> Iterator[Problem]:
        dropout = (values.get("lora") or {}).get("dropout")
        if dropout:
            why = f"{stage} compares probabilities of the same text, and dropout would change them"
            yield Problem("lora.dropout", why, value=dropout, allowed="0", fix=leave_out("lora.dropout"))

    return adapter_has_no_dropout


def answers_fit_the_context(group: str) -> Rule:
    """Return a rule that generated answers must fit in the context. group: the stage's group of keys."""

    def prompt_and_answer_fit(values: Values) -> Iterator[Problem]:
        length = (values.get("train") or {}).get("max_length")
        longest = (values.get(group) or {}).get("max_completion_length")
        if longest and length and longest >= length:
            yield Problem(
                f"{group}.max_completion_length",
                f"prompt and output together must fit into train.max_length = {length} tokens",
                value=longest,
                allowed=f"1 to {length - 1}",
                fix=f"Try {max(1, length // 2)}.",
            )

    return prompt_and_answer_fit
