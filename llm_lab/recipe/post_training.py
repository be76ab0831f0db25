"""The recipes after pretraining: SFT, reward models, DPO, GRPO, PPO, and the merge of an adapter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, create_model

from .fields import Bool, Float, Group, Int, groups_of, option
from .parts import ModelCheckpoint
from .schema import SPLITS, STAGES, PretrainRecipe, Scheduler, StageRecipe, TrainLoop
from .scoring import Columns, RewardTerm, Score

CHAT_TEMPLATES = {
    "own": "the tokenizer's own; an error where it has none",
    "chatml": "<|im_start|>role ... <|im_end|>: the common one",
    "zephyr": "<|role|> ... : Zephyr's and TinyLlama's",
    "llama3": "<|start_header_id|>role<|end_header_id|> ... <|eot_id|>: Llama 3's",
}
LORA_PRESETS = {
    "minimal": "queries and values: fewest weights",
    "attention_only": "queries, keys, values and output of attention",
    "ffn_only": "the feed-forward matrices",
    "all": "every matrix of the blocks: learns most",
    "custom": "the layers you name in target_modules",
}
DPO_LOSSES = {
    "sigmoid": "the paper's: a logistic loss on the margin",
    "ipo": "a squared loss that aims at a fixed margin; overfits less",
    "hinge": "no loss beyond a margin of 1",
    "robust": "for preferences of which label_smoothing are wrong",
}
GRPO_LOSSES = {
    "dapo": "mean over the tokens of the whole step; long answers count by their length",
    "grpo": "mean over each answer, then over answers; favours short right answers",
    "dr_grpo": "sum over tokens, by the longest length: no length bias",
    "bnpo": "mean over the tokens of the batch",
}
REWARD_SCALES = {
    "group": "by the spread within a group; the paper's",
    "batch": "by the spread of the batch; steadier",
    "none": "not at all: no bias towards easy or hard prompts",
}


class ExampleSet(Group):
    """One set of examples."""

    path: str = option(
        ...,
        help="a file, folder or glob (jsonl, json, csv, parquet), builtin:NAME, or a Hub name",
        question="Which examples?",
        why="The form is found by looking at the first rows: messages, conversations, prompt and completion, "
        "instruction and output, question and answer; for preferences chosen and rejected.",
        min_length=1,
    )
    subset: str | None = option(help="the Hub dataset's configuration", min_length=1)
    split: str = option("train", help="the split of a Hub dataset or of a built-in one", min_length=1)
    columns: Columns | None = option(help="which column holds what", derived="found by looking at the first rows")
    weight: Float = option(1.0, help="share of the mix, relative to the others", gt=0.0)


class Lora(Group):
    """LoRA (Hu et al. 2021): small matrices beside the frozen ones are trained."""

    preset: Literal[tuple(LORA_PRESETS)] = option(
        "minimal",
        help="which layers get an adapter",
        question="Which layers get an adapter?",
        choices=LORA_PRESETS,
        why="More layers learn more and cost more memory. `all` with a small r is usually better than `minimal` "
        "with a large one (Dettmers et al. 2023).",
    )
    target_modules: tuple[str, ...] | None = option(
        help="names of the layers, as in q_proj", question="Names of the layers?", when={"lora.preset": ("custom",)}
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
        False, help="scale by alpha / sqrt(r), for large ranks", question="Rank-stabilised scale?", advanced=True
    )
    use_dora: Bool = option(
        False,
        help="learn size and direction apart (DoRA): a little better, slower",
        question="DoRA?",
        advanced=True,
    )
    load_in_4bit: Bool = option(
        False,
        help="keep the frozen base in 4 bits (QLoRA); CUDA and bitsandbytes",
        question="Base in 4 bits (QLoRA)?",
        advanced=True,
    )


class PromptValidation(Group):
    """Which prompts are kept from training."""

    fraction: Float = option(
        0.1,
        help="share of each set that is kept from training",
        question="What share is kept from training?",
        ge=0.0,
        le=0.5,
    )
    from_: Literal[tuple(SPLITS)] = option(
        "random",
        alias="from",
        help="which part is kept",
        question="Which part is kept?",
        choices=SPLITS,
        advanced=True,
    )


class ExampleValidation(PromptValidation):
    """Which examples are kept from training, to measure on."""

    max_examples: Int | None = option(
        help="examples measured at an evaluation, at most",
        question="Examples measured at an evaluation, at most?",
        derived="200 on a CPU, 1,000 on a GPU",
        ge=1,
        advanced=True,
    )


class Replies(Group):
    """Answers written at every evaluation, always to the same prompts."""

    prompts: tuple[str, ...] | None = option(
        help="what the model is asked",
        question="Prompts of the samples?",
        derived="the first three held-out ones",
        advanced=True,
    )
    max_new_tokens: Int = option(
        80, help="length of an answer, in tokens", question="Tokens in a sample?", ge=1, le=100_000, advanced=True
    )
    temperature: Float = option(
        0.0,
        help="0: always the likeliest token",
        question="Temperature of the samples?",
        ge=0.0,
        le=10.0,
        advanced=True,
    )


class SftOptions(Group):
    """What SFT learns from an example."""

    assistant_only_loss: Bool = option(
        True,
        help="learn only what the assistant says",
        question="Learn only the assistant's words?",
        why="The other words are context: a model that learns to write the questions too spends its weights on it.",
    )
    packing: Bool = option(
        False,
        help="several examples in a row, kept apart by the attention mask",
        question="Pack several examples into a row?",
        why="Less padding where examples are short. Attention never crosses from one example into another.",
        advanced=True,
    )


class RewardOptions(Group):
    """What a reward model learns: the better answer scores higher (Bradley & Terry)."""

    center_rewards_coefficient: Float = option(
        0.01,
        help="pulls the mean score towards 0 (Eisenstein et al. 2023)",
        question="Pull scores towards 0 by?",
        ge=0.0,
        advanced=True,
    )


class DpoOptions(Group):
    """DPO (Rafailov et al. 2023)."""

    beta: Float = option(
        0.1,
        help="how near it stays to the reference: larger is nearer",
        question="Beta?",
        gt=0.0,
    )
    loss_type: Literal[tuple(DPO_LOSSES)] = option(
        "sigmoid", help="the loss", question="Which loss?", choices=DPO_LOSSES
    )
    label_smoothing: Float = option(
        0.0,
        help="share of the preferences that may be wrong",
        question="Share of the preferences that may be wrong?",
        ge=0.0,
        lt=0.5,
        when={"dpo.loss_type": ("robust",)},  # TRL's other losses take no notice of it
        advanced=True,
    )
    sft_weight: Float = option(
        0.0,
        help="adds the SFT loss on the better answers, so that their probability does not sink",
        question="Weight of an added SFT loss?",
        why="DPO alone may lower the probability of both answers. 0.1 to 1 keeps the better one up (Pang et al. 2024).",
        ge=0.0,
    )
    reference: str | None = option(
        help="the model it stays near to",
        question="Reference model (empty: the model it starts from)?",
        derived="the model it starts from",
        min_length=1,
        advanced=True,
    )


def _completion_length() -> Any:
    return option(
        256,
        help="length of an answer, in tokens, at most",
        question="Length of an answer, in tokens, at most?",
        ge=1,
    )


def _temperature() -> Any:
    return option(
        1.0,
        help="of the sampling; the probabilities are those at this temperature",
        question="Temperature?",
        gt=0.0,
        le=10.0,
    )


class GrpoOptions(Group):
    """GRPO (Shao et al. 2024): the answers to one prompt are compared with each other."""

    num_generations: Int = option(4, help="answers to a prompt", question="Answers to a prompt?", ge=2)
    max_completion_length: Int = _completion_length()
    temperature: Float = _temperature()
    beta: Float = option(
        0.0,
        help="weight of the distance (KL) to the model it starts from; 0: none, and no second model",
        question="Weight of the KL to the start?",
        ge=0.0,
    )
    epsilon: Float = option(
        0.2, help="ratios are clipped at 1 ± epsilon", question="Epsilon?", gt=0.0, lt=1.0, advanced=True
    )
    num_iterations: Int = option(
        1, help="updates on the same answers", question="Updates on the same answers?", ge=1, advanced=True
    )
    loss_type: Literal[tuple(GRPO_LOSSES)] = option(
        "dapo", help="how tokens are averaged", question="How are tokens averaged?", choices=GRPO_LOSSES, advanced=True
    )
    scale_rewards: Literal[tuple(REWARD_SCALES)] = option(
        "group",
        help="what a reward is divided by",
        question="How are rewards scaled?",
        choices=REWARD_SCALES,
        advanced=True,
    )
    mask_truncated_completions: Bool = option(
        False,
        help="answers that were cut off teach nothing",
        question="Leave cut-off answers out?",
        advanced=True,
    )


class PpoOptions(Group):
    """PPO (Schulman et al. 2017), as in RLHF: a reward at the end, a KL penalty at every token, a critic."""

    max_completion_length: Int = _completion_length()
    temperature: Float = _temperature()
    kl_coef: Float = option(
        0.05,
        help="what a nat of distance to the start costs, at every token",
        question="KL coefficient?",
        ge=0.0,
    )
    gamma: Float = option(1.0, help="discount of later rewards", question="Gamma?", ge=0.0, le=1.0, advanced=True)
    lam: Float = option(
        0.95, help="lambda of GAE: 1 trusts rewards, 0 the critic", question="Lambda?", ge=0.0, le=1.0, advanced=True
    )
    cliprange: Float = option(
        0.2, help="ratios are clipped at 1 ± this", question="Clip range?", gt=0.0, lt=1.0, advanced=True
    )
    cliprange_value: Float = option(
        0.2,
        help="the critic moves at most this far from its old value",
        question="Clip range of the critic?",
        gt=0.0,
        advanced=True,
    )
    num_ppo_epochs: Int = option(2, help="passes over the same answers", question="Passes over the same answers?", ge=1)
    num_mini_batches: Int = option(1, help="updates in a pass", question="Updates in a pass?", ge=1, advanced=True)
    critic: str | None = option(
        help="what the critic starts from: a run or folder, a reward model too",
        question="Critic (empty: a copy of the model)?",
        derived="a copy of the model, with a new head",
        min_length=1,
        advanced=True,
    )
    critic_learning_rate: Float | None = option(
        help="the critic's own learning rate",
        question="Learning rate of the critic?",
        derived="5 times the model's",
        gt=0.0,
        advanced=True,
    )
    missing_eos_penalty: Float = option(
        0.0,
        help="taken from the reward of an answer that was cut off",
        question="Penalty for a cut-off answer?",
        ge=0.0,
        advanced=True,
    )


class MergeOptions(Group):
    """When a merge is refused."""

    tolerance: Float | None = option(
        help="largest difference of logits, relative to their size, before and after",
        question="Largest difference of logits?",
        derived="1e-4; 2e-2 for a base in bf16",
        gt=0.0,
        advanced=True,
    )


class TuneSteps(Group):
    """How long a run on examples is."""

    num_train_epochs: Float | None = option(
        help="passes over the examples; the steps follow from it",
        question="Passes over the examples?",
        derived="3 for SFT, 1 for reward models and DPO, where max_steps is left out",
        gt=0.0,
    )
    max_steps: Int | None = option(
        help="optimizer updates, instead of num_train_epochs",
        question="How many steps (empty: by passes)?",
        derived="num_train_epochs over the examples; 200 for GRPO and PPO",
        ge=1,
    )
    max_length: Int | None = option(
        help="tokens of an example, at most; longer ones are cut",
        question="Tokens of an example, at most?",
        derived="the model's context, at most 1,024",
        ge=2,
    )


class TuneTrain(TrainLoop, TuneSteps):
    """The run itself. A step is one optimizer update."""


def _tuned(group: type[Group]) -> type[Group]:
    """Return an optimizer's group with the learning rates left to the stage: a tuned model wants less."""
    changed = {
        name: (
            Float | None,
            option(
                None,
                help=info.description,
                question=info.json_schema_extra.get("question"),
                derived="the pretraining default × 0.02 for SFT, 0.01 for reward models, 0.001 for DPO, GRPO and PPO; "
                "10 times that with LoRA",
                gt=0.0,
                le=10.0,
                advanced=info.json_schema_extra.get("advanced", False),
            ),
        )
        for name, info in group.model_fields.items()
        if name.endswith("learning_rate")
    }
    return create_model(f"Tune{group.__name__}", __base__=group, __doc__=group.__doc__, **changed)


# Sophia's extra passes over the last batch know only the loss of pretraining.
TUNED = {
    group.model_fields["name"].default: _tuned(group)
    for group in groups_of(PretrainRecipe.model_fields["optimizer"])
    if group.__name__ != "Sophia"
}


def _optimizer_name(value: Any) -> str:
    return str(value.get("name", "adamw")) if isinstance(value, dict) else value.name


def _any_of(members: dict[str, type[Group]]) -> Any:
    union: Any = None
    for name, group in members.items():
        member = Annotated[group, Tag(name)]
        union = member if union is None else union | member
    return Annotated[union, Discriminator(_optimizer_name)]


TuneOptimizer = _any_of(TUNED)


class TuneRecipe(StageRecipe):
    """What the recipes of all trained stages after pretraining have."""

    model: ModelCheckpoint = option(..., help="the model to go on from: {checkpoint: a run, a folder or a Hub name}")
    chat_template: Literal[tuple(CHAT_TEMPLATES)] | None = option(
        help="how a conversation is written as text",
        question="Which chat template?",
        choices=CHAT_TEMPLATES,
        derived="own where the tokenizer has one, else chatml",
    )
    data: tuple[ExampleSet, ...] = option(..., help="the examples, each set with its weight", min_length=1)
    validation: PromptValidation = option(PromptValidation(), help="what is kept from training")
    lora: Lora | None = option(help="train an adapter; left out: all weights are trained")
    optimizer: TuneOptimizer = option(TUNED["adamw"](), help="how weights follow gradients")
    scheduler: Scheduler = option(Scheduler(), help="the learning rate over the run")
    train: TuneTrain = option(TuneTrain(), help="the run itself")


class TalkRecipe(TuneRecipe):
    """What the recipes of the stages have whose result can be talked to."""

    score: Score | None = option(help="held-out prompts that are answered and scored at every evaluation")
    samples: Replies = option(Replies(), help="answers written at every evaluation")


class SftRecipe(TalkRecipe):
    """SFT: learn to answer, from conversations."""

    stage: Literal["sft"] = option("sft", help="what is done", choices={"sft": STAGES["sft"]})
    validation: ExampleValidation = option(ExampleValidation(), help="what is kept from training, to measure on")
    sft: SftOptions = option(SftOptions(), help="what is learnt from an example")


class RewardRecipe(TuneRecipe):
    """A reward model: learn to judge answers, from preferences."""

    stage: Literal["reward"] = option("reward", help="what is done", choices={"reward": STAGES["reward"]})
    validation: ExampleValidation = option(ExampleValidation(), help="what is kept from training, to measure on")
    reward: RewardOptions = option(RewardOptions(), help="what is learnt from a preference")


class DpoRecipe(TalkRecipe):
    """DPO: prefer the better answer, straight from preferences."""

    stage: Literal["dpo"] = option("dpo", help="what is done", choices={"dpo": STAGES["dpo"]})
    validation: ExampleValidation = option(ExampleValidation(), help="what is kept from training, to measure on")
    dpo: DpoOptions = option(DpoOptions(), help="what is learnt from a preference")


class GrpoRecipe(TalkRecipe):
    """GRPO: try, score, and do more of what scored well in its group."""

    stage: Literal["grpo"] = option("grpo", help="what is done", choices={"grpo": STAGES["grpo"]})
    rewards: tuple[RewardTerm, ...] = option(..., help="what an answer is scored by", min_length=1)
    score: Score | None = option(Score(), help="held-out prompts that are answered and scored; null: none")
    grpo: GrpoOptions = option(GrpoOptions(), help="how it tries and learns")


class PpoRecipe(TalkRecipe):
    """PPO: try, score, and do more of what scored better than the critic thought."""

    stage: Literal["ppo"] = option("ppo", help="what is done", choices={"ppo": STAGES["ppo"]})
    rewards: tuple[RewardTerm, ...] = option(..., help="what an answer is scored by", min_length=1)
    score: Score | None = option(Score(), help="held-out prompts that are answered and scored; null: none")
    ppo: PpoOptions = option(PpoOptions(), help="how it tries and learns")


class MergeRecipe(StageRecipe):
    """The merge of a LoRA adapter into its base."""

    stage: Literal["merge"] = option("merge", help="what is done", choices={"merge": STAGES["merge"]})
    model: ModelCheckpoint = option(..., help="the adapter: {checkpoint: a run or a folder}")
    merge: MergeOptions = option(MergeOptions(), help="when it is refused")
