"""How near answers are to references: BLEU by sacrebleu, ROUGE by rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

ROUGE = ("rouge1", "rouge2", "rougeL")


def score_texts(wanted: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return bleu (0 to 100, of all answers as one corpus) and rouge1, rouge2, rougeL (0 to 1, mean F-measure)."""
    scores: dict[str, float] = {}
    if "bleu" in wanted:
        from sacrebleu import corpus_bleu

        scores["bleu"] = corpus_bleu(list(answers), [list(references)]).score
    if "rouge" in wanted:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE))
        found = [scorer.score(reference, answer) for reference, answer in zip(references, answers, strict=True)]
        scores |= {name: sum(row[name].fmeasure for row in found) / len(found) for name in ROUGE}
    return scores
