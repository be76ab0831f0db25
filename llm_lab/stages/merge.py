"""Merge of a LoRA adapter into its base, as a run or into any folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.hf.adapter import read_adapter
from llm_lab.hf.load import quiet_libraries
from llm_lab.hf.merging import Merged, merge_adapter
from llm_lab.runs.disk import is_disk_error, remove_folder, staged_folder
from llm_lab.runs.folder import RunFolder, find_model
from llm_lab.training.loop import Result, describe_parent, not_written

if TYPE_CHECKING:
    from llm_lab.recipe.merge import MergeRecipe


def run(recipe: MergeRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Merge the recipe's adapter into the run folder's model/."""
    remove_folder(folder.model_path)  # left by a process that was killed before it recorded the result
    merged = merge_into(
        recipe.model.checkpoint,
        folder.model_path,
        listener,
        tolerance=recipe.merge.tolerance,
        seed=recipe.seed,
        key="model.checkpoint",
    )
    adapter = merged.adapter
    folder.update(parent=describe_parent(str(adapter.folder)), base=describe_parent(adapter.base))
    results = {
        "logit_difference": merged.difference,
        "relative_logit_difference": merged.relative_difference,
        "adapter_effect": merged.effect,
    }
    return Result("done", results)


def merge_into(
    checkpoint: str | Path,
    out: Path,
    listener: Listener,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    key: str = "adapter",
) -> Merged:
    """Merge an adapter (or a run's adapter) and write the result to `out`, which appears complete or not at all.

    Raises UserError if it is not an adapter, does not fit its base, changes the logits when merged, or if `out` is not
    empty.
    """
    quiet_libraries()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(Problem("--out", "the folder is not empty", value=out, fix="Name a new folder."))
    adapter = read_adapter(find_model(checkpoint), key=key)
    listener(Notice(f"merging {adapter.folder} into {adapter.base}"))
    if adapter.in_4bit:
        listener(
            RunWarning(
                "this adapter was trained on a 4-bit base but is merged into the full-precision weights, which differ "
                "slightly: evaluate the result"
            )
        )
    load = None
    if adapter.task == "SEQ_CLS":
        from llm_lab.rewards.classifier import load_classifier

        load = partial(load_classifier, new_head=True, key=key)
    try:
        with staged_folder(out) as staged:
            merged = merge_adapter(adapter.folder, staged, tolerance=tolerance, seed=seed, load=load, key=key)
    except Exception as error:
        if not is_disk_error(error):
            raise
        raise not_written(out, error, "Free some space, then merge again.") from error
    listener(Notice(merged.describe()))
    if merged.effect == 0:
        listener(RunWarning("the adapter has no effect: was it trained?"))
    return merged
