"""The quantities of a run: one name, unit and explanation for each, used by every screen, report, card and chart.

docs/glossary.md is generated from this table. A key is what metrics.jsonl, the results in run.json or an evaluation
call a quantity; screens show its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llm_lab.estimate.formatting import clock, count, decimal, percent, size


@dataclass(frozen=True)
class Quantity:
    """One measured number.

    healthy: what to expect of it, empty where any value is fine. more_is_better: None where neither is.
    """

    name: str
    meaning: str
    healthy: str = ""
    unit: str = ""
    write: Callable[[float], str] = decimal
    more_is_better: bool | None = None


_LOSS = "{:.4f}".format
_SHORT = "{:.3f}".format
_SMALL = "{:.3g}".format
_NATS = "nats per token"

# By section, in the order in which screens show them.
GLOSSARY: Mapping[str, Mapping[str, Quantity]] = {
    "Training": {
        "loss": Quantity(
            "training loss",
            "Mean negative log-likelihood of the trained tokens; after SFT, the objective of the stage.",
            "falls fast, then slowly. In GRPO and PPO it hovers around 0: watch the reward instead.",
            "nats per token (pretraining, SFT)",
            _LOSS,
            False,
        ),
        "eval_loss": Quantity(
            "validation loss",
            "The training loss, measured on data held out from training.",
            "falls with the training loss; rising while the training loss falls means overfitting.",
            "nats per token (pretraining, SFT)",
            _LOSS,
            False,
        ),
        "bits_per_byte": Quantity(
            "bits per byte",
            "Validation loss in bits per byte of text; comparable across tokenizers.",
            "falls; large models reach about 1 or less on English prose.",
            "bits per byte",
            _LOSS,
            False,
        ),
        "learning_rate": Quantity(
            "learning rate",
            "Step size of the optimizer, set by the schedule.",
            "rises during warm-up, then follows the schedule.",
            write="{:#.3g}".format,
        ),
        "grad_norm": Quantity(
            "gradient norm",
            "L2 norm of the gradient of all trained weights, before clipping.",
            "steady or slowly falling; frequent spikes mean the learning rate is too high.",
            write="{:.2f}".format,
        ),
        "unclipped_share": Quantity(
            "unclipped share",
            "Share of weights whose Sophia update is below the clip threshold.",
            "10 to 50 %; otherwise change optimizer.rho.",
            "share",
            percent,
        ),
        "mix": Quantity(
            "mix", "Share of the trained tokens that each data source supplied.", "close to the weights.", "%"
        ),
        "epochs": Quantity(
            "epochs",
            "How often each data source has been read.",
            "more than about 4 passes over the same text adds little in pretraining.",
        ),
        "train_tokens": Quantity("tokens", "Tokens trained on so far.", unit="tokens", write=count),
    },
    "Speed and memory": {
        "tokens_per_second": Quantity(
            "tokens/s",
            "Tokens trained on, or generated, per second.",
            "constant after the first steps.",
            "tokens per second",
            "{:,.0f}".format,
        ),
        "mfu": Quantity(
            "MFU",
            "Model FLOPs utilization: share of the GPU's peak bf16 speed that the model's arithmetic uses.",
            "30 to 60 % for models of 100 M parameters and more.",
            "share",
            percent,
        ),
        "memory_bytes": Quantity(
            "peak memory", "Most memory in use at once: of the GPU, or of the process on a CPU.", write=size
        ),
        "time_left": Quantity("time left", "Estimated from the speed of the last log steps.", write=clock),
        "wall_seconds": Quantity(
            "training time", "Time spent on the run, including the time before a resume.", unit="seconds", write=clock
        ),
        "seconds_to_first_token": Quantity(
            "time to first token",
            "Time from the prompt to the first generated token.",
            unit="milliseconds",
            write=lambda seconds: f"{1000 * seconds:,.1f} ms",
        ),
    },
    "Fine-tuning": {
        "token_accuracy": Quantity(
            "token accuracy",
            "Share of the trained tokens that are the model's top prediction.",
            "rises.",
            "share",
            percent,
            True,
        ),
        "entropy": Quantity(
            "entropy",
            "Uncertainty of the model about the next token, averaged over the tokens of the output.",
            "falls slowly. In RL a fall to 0 means that all outputs become the same.",
            "nats",
            _SHORT,
        ),
    },
    "Preferences: DPO and reward models": {
        "accuracy": Quantity(
            "accuracy",
            "Share of pairs whose chosen answer gets the higher reward (in DPO, the implicit reward).",
            "rises; 50 % is chance. DPO starts at 0 %, where all margins are 0.",
            "share",
            percent,
            True,
        ),
        "eval_accuracy": Quantity(
            "validation accuracy",
            "The accuracy on pairs held out from training.",
            "clearly above 50 %; far below the accuracy in training means overfitting.",
            "share",
            percent,
            True,
        ),
        "margin": Quantity(
            "margin", "Mean reward of the chosen answers minus that of the rejected ones.", "rises.", "", _SHORT, True
        ),
        "eval_margin": Quantity(
            "validation margin", "The margin on pairs held out from training.", "rises.", "", _SHORT, True
        ),
        "reward_chosen": Quantity(
            "chosen reward",
            "Implicit reward of the chosen answers: beta × their log-probability ratio to the reference model.",
            "stays near 0 or rises; a fall together with the rejected reward is common in DPO.",
            "",
            _SHORT,
        ),
        "reward_rejected": Quantity(
            "rejected reward", "Implicit reward of the rejected answers.", "falls below the chosen reward.", "", _SHORT
        ),
        "logps_chosen": Quantity(
            "chosen log-probability",
            "Log-probability of the chosen answers under the model.",
            "a steep fall means the model unlearns good answers: raise dpo.sft_weight or dpo.beta.",
            "nats",
            "{:.2f}".format,
        ),
        "logps_rejected": Quantity(
            "rejected log-probability",
            "Log-probability of the rejected answers under the model.",
            "falls.",
            "nats",
            "{:.2f}".format,
        ),
        "mean_reward": Quantity(
            "mean score",
            "Mean score that the reward model gives to the answers of a batch.",
            "near 0 with reward.center_rewards_coefficient; free to drift without it.",
            "",
            _SHORT,
        ),
    },
    "Reinforcement learning: GRPO and PPO": {
        "reward": Quantity(
            "reward", "Mean reward of the outputs sampled in training.", "rises, noisily.", "", _SHORT, True
        ),
        "reward_std": Quantity(
            "reward std",
            "Standard deviation of the rewards in the batch.",
            "above 0; at 0 there is nothing to learn from.",
            "",
            _SHORT,
        ),
        "zero_spread_share": Quantity(
            "groups without signal",
            "Share of groups whose outputs all got the same reward, so that their advantages are 0.",
            "well below 100 %; near 100 % the prompts are too hard or too easy.",
            "share",
            percent,
        ),
        "advantage": Quantity(
            "advantage",
            "How much better an output is than its group (GRPO) or than the value model expected (PPO).",
            "averages about 0.",
        ),
        "kl": Quantity(
            "KL",
            "KL divergence from the reference model, averaged over the output tokens.",
            "grows slowly; a jump means the model is moving too far from the reference model: raise beta or kl_coef.",
            _NATS,
            _SMALL,
        ),
        "ratio": Quantity(
            "ratio",
            "Probability of a token under the model divided by its probability when the output was sampled.",
            "exactly 1 before the first update on a rollout, close to 1 after it.",
        ),
        "clip_fraction": Quantity(
            "clip fraction",
            "Share of tokens whose ratio was outside the clip range.",
            "0 to 20 %; more means the steps are too large.",
            "share",
            percent,
        ),
        "completion_length": Quantity(
            "output length",
            "Mean length of the sampled outputs.",
            "stable; a steady climb to the limit suggests that the reward favors length.",
            "tokens",
            "{:.1f}".format,
        ),
        "cut_off_share": Quantity(
            "truncated outputs",
            "Share of outputs that reached max_completion_length before an end-of-turn token.",
            "near 0 %.",
            "share",
            percent,
        ),
        "explained_variance": Quantity(
            "explained variance",
            "Share of the variance of the returns that the value model predicts.",
            "rises toward 100 %; below 0 the value model is worse than a constant.",
            "share",
            percent,
            True,
        ),
        "value_loss": Quantity(
            "value loss", "Squared error of the value model's estimates of the return, halved.", "falls.", "", _SMALL
        ),
        "policy_loss": Quantity(
            "policy loss", "PPO's clipped objective, without the value loss.", "hovers around 0.", "", _SMALL
        ),
        "critic_grad_norm": Quantity(
            "value gradient norm",
            "L2 norm of the gradient of the value model, before clipping.",
            "steady or falling.",
            write="{:.2f}".format,
        ),
    },
    "Scores on held-out prompts": {
        "exact_match": Quantity(
            "exact match (greedy)",
            "Share of held-out prompts whose greedy answer is right.",
            "rises.",
            "share",
            percent,
            True,
        ),
        "exact_match_sampled": Quantity(
            "exact match (sampled)",
            "Share of held-out prompts whose answer, sampled at temperature 1, is right.",
            "rises, mostly below the greedy share; RL brings the two together.",
            "share",
            percent,
            True,
        ),
        "eval_reward": Quantity(
            "held-out reward (greedy)", "Mean reward of greedy answers to held-out prompts.", "rises.", "", _SHORT, True
        ),
        "eval_reward_sampled": Quantity(
            "held-out reward (sampled)",
            "Mean reward of answers to held-out prompts, sampled at temperature 1.",
            "rises with the reward in training; a gap means overfitting to the prompts.",
            "",
            _SHORT,
            True,
        ),
        "eval_completion_length": Quantity(
            "held-out output length",
            "Mean length of greedy answers to held-out prompts.",
            "",
            "tokens",
            "{:.1f}".format,
        ),
        "bleu": Quantity(
            "BLEU",
            "N-gram overlap of the greedy answers with the references (sacreBLEU, 0 to 100).",
            "",
            "",
            "{:.2f}".format,
            True,
        ),
        "rouge1": Quantity("ROUGE-1", "Overlap in single words with the references (F1).", "", "", _LOSS, True),
        "rouge2": Quantity("ROUGE-2", "Overlap in word pairs with the references (F1).", "", "", _LOSS, True),
        "rougeL": Quantity("ROUGE-L", "Longest common subsequence with the references (F1).", "", "", _LOSS, True),
    },
    "Evaluation and comparison": {
        "text_loss": Quantity(
            "loss on text",
            "Mean negative log-likelihood of a text's tokens at this context length.",
            "",
            _NATS,
            _LOSS,
            False,
        ),
        "perplexity": Quantity(
            "perplexity",
            "e to the loss: the number of equally likely tokens the model is choosing from.",
            "falls; comparable only between models with the same tokenizer.",
            "",
            lambda number: f"{number:,.2f}" if number < 1e6 else f"{number:.3g}",
            False,
        ),
        "agreement": Quantity(
            "top-1 agreement",
            "Share of positions at which two models predict the same top token.",
            "",
            "share",
            percent,
        ),
        "parameters": Quantity("parameters", "Weights of the model.", write="{:,.0f}".format),
        "tasks": Quantity(
            "task metric", "A metric of an lm-evaluation-harness task; the key is `tasks/TASK/METRIC`.", write=_LOSS
        ),
    },
    "Merge and export": {
        "logit_difference": Quantity(
            "logit difference",
            "Largest difference between the logits of the written model and of its source.",
            "tiny for float32; larger for 8-bit and 4-bit weights.",
            "logits",
            "{:.2g}".format,
            False,
        ),
        "relative_logit_difference": Quantity(
            "relative logit difference",
            "The logit difference divided by the largest logit.",
            "below 1e-4 in float32.",
            "",
            "{:.2g}".format,
            False,
        ),
        "size_bytes": Quantity("file size", "Size of the exported weights.", write=size),
    },
    "Progress": {
        "step": Quantity("step", "Optimizer updates done.", write="{:,.0f}".format),
    },
}
QUANTITIES = {key: quantity for section in GLOSSARY.values() for key, quantity in section.items()}
ORDER = {key: number for number, key in enumerate(QUANTITIES)}
# Computed or explained only: no file has these keys.
WITHOUT_KEY = frozenset({"mfu", "time_left", "advantage", "ratio", "text_loss"})
# Quantities of the machine and the day, which say nothing about the model.
OF_THE_MACHINE = frozenset({"wall_seconds", "tokens_per_second", "memory_bytes"})


def quantity(key: str) -> Quantity:
    """Return what is known of a key; one that is not in the glossary is named as it is written.

    A part after a slash or colon says of what: eval_loss/my.txt, loss:my.txt, reward/length, tasks/arc_easy/acc.
    """
    if key in QUANTITIES:
        return QUANTITIES[key]
    base, _, of = key.partition("/")
    if base == "reward":
        return replace(
            QUANTITIES["reward"], name=f"reward: {of}", meaning=f"Mean of the reward term {of}, before its weight."
        )
    if base == "tasks":
        return replace(QUANTITIES["tasks"], name=of.replace("/", " "))
    if base in QUANTITIES:
        return replace(QUANTITIES[base], name=f"{QUANTITIES[base].name}, {of}")
    return Quantity(key.replace("_", " "), "")


def name_of(key: str) -> str:
    """Return what people call a quantity."""
    return quantity(key).name


def write(key: str, value: float | None) -> str:
    """Return a quantity's value for people; "-" where there is none."""
    return "-" if value is None else quantity(key).write(value)


def rank(key: str) -> int:
    """Return the place of a key in the glossary's order; unknown keys come last."""
    return ORDER.get(key, ORDER.get(key.partition("/")[0], len(ORDER)))


def glossary_page() -> str:
    """Return docs/glossary.md."""
    lines = [
        "# Glossary",
        "",
        "The numbers that training, evaluation and comparison show, with the keys they have in `metrics.jsonl` and",
        "`run.json`. Press `?` while a run is shown in a terminal to see the ones on the screen.",
    ]
    for title, entries in GLOSSARY.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| name | key | unit | what it is | healthy |",
            "| --- | --- | --- | --- | --- |",
        ]
        for key, entry in entries.items():
            shown = "" if key in WITHOUT_KEY else f"`{key}`"
            lines.append(f"| {entry.name} | {shown} | {entry.unit} | {entry.meaning} | {_sentence(entry.healthy)} |")
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
