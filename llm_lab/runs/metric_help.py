"""What the results of a run are, and their units."""

from __future__ import annotations

from llm_lab.recipe.registry import STAGES

# Result -> what it is, and its unit.
MEANS = {
    "eval_loss": ("loss on held-out data", "nats per token"),
    "bits_per_byte": ("the same, by the bytes of the text", "bits per byte"),
    "perplexity": ("e to the loss", ""),
    "loss": ("last training loss", "nats per token"),
    "eval_accuracy": ("pairs judged rightly, held out", "share"),
    "accuracy": ("pairs judged rightly in the last training steps", "share"),
    "eval_margin": ("reward of the chosen answer above the rejected, held out", ""),
    "margin": ("the same, in the last training steps", ""),
    "reward_chosen": ("implicit reward of chosen answers", ""),
    "reward_rejected": ("implicit reward of rejected answers", ""),
    "logps_chosen": ("log-probability of chosen answers", "nats"),
    "logps_rejected": ("log-probability of rejected answers", "nats"),
    "exact_match": ("held-out answers that are right, greedy", "share"),
    "exact_match_sampled": ("held-out answers that are right, sampled", "share"),
    "eval_reward": ("mean reward of held-out answers, greedy", ""),
    "eval_reward_sampled": ("mean reward of held-out answers, sampled", ""),
    "eval_completion_length": ("length of held-out answers", "tokens"),
    "kl": ("distance from the reference policy", "nats"),
    "train_tokens": ("tokens that it was trained on", "tokens"),
    "logit_difference": ("largest difference from the attached adapter", "logits"),
    "relative_logit_difference": ("the same, by the largest logit", ""),
}


def meaning_of(name: str, stage: str | None) -> tuple[str, str]:
    """Return (what a result is, its unit)."""
    record = STAGES.get(stage or "")
    if name in ("loss", "eval_loss") and (record is None or not record.loss_unit):
        return MEANS[name][0] + ", of this stage's own kind", ""
    return MEANS.get(name, ("", ""))
