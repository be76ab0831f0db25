"""How near answers are to references: BLEU by sacrebleu, ROUGE by rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from llm_lab.recipe.errors import MachineError, Problem

PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}
ROUGE = ("rouge1", "rouge2", "rougeL")


def demand_packages(packages: Sequence[str], key: str) -> None:
    """Raise MachineError where a package of the extra `eval` is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        why = f"the package {' and '.join(missing)} is not installed here"
        raise MachineError(Problem(key, why, mend="pip install 'llm-lab[eval]'"))


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
