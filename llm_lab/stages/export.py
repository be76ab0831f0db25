"""Export of a checkpoint to Hugging Face, GGUF or a Space, verified by loading it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.events import Listener, Notice
from llm_lab.export.plan import DTYPES, ExportPlan, plan_export
from llm_lab.export.push import find_destination, push_folder
from llm_lab.export.space import MODEL, write_space
from llm_lab.export.verify import FAILED, Verification, verify_folder, verify_gguf
from llm_lab.hf.adapter import is_adapter
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.runs.card import write_card
from llm_lab.runs.card_answers import read_answers
from llm_lab.runs.disk import is_disk_error, remove_folder, staged_folder
from llm_lab.runs.folder import RunFolder, now, run_of
from llm_lab.training.loop import Result, describe_parent, not_written

if TYPE_CHECKING:
    from llm_lab.recipe.export import ExportRecipe

FOLDERS = {"gguf": "gguf", "space": "space"}  # in the run folder; for hf: model


class VerificationError(LabError):
    """The exported model differs from the original."""

    exit_code = 1


@dataclass(frozen=True)
class Exported:
    """An export in `folder`, and its verification. The folder does not exist if verification failed."""

    plan: ExportPlan
    folder: Path
    verification: Verification
    size_bytes: int

    def record(self) -> dict[str, Any]:
        """Return the export for run.json."""
        plan = self.plan
        where = self.folder / plan.file if plan.file else self.folder
        return {
            "name": plan.name,
            "to": plan.to,
            "weights": plan.weights,
            "path": str(where),
            "size_bytes": self.size_bytes,
            "loads": asdict(plan.loads),
            "remarks": list(plan.remarks),
            "proof": self.verification.as_dict(),
        }


def run(recipe: ExportRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Export the recipe's checkpoint into the run's model/, gguf/ or space/, and push it if the recipe says so."""
    form = recipe.export
    out = folder.path / FOLDERS[form.to] if form.to in FOLDERS else folder.model_path
    destination = find_destination(form.push, private=form.private) if form.push else None
    kept = folder.facts().get("export") if resume and out.exists() else None
    if kept is None:
        remove_folder(out)  # left by a process that was killed before it recorded the result
        exported = export_into(
            recipe.model.checkpoint,
            out,
            listener,
            to=form.to,
            weights=form.weights,
            tolerance=form.tolerance,
            seed=recipe.seed,
            repo=form.push,
            key="model.checkpoint",
        )
        kept = exported.record() | {"results": results_of(exported)}
        folder.update(parent=describe_parent(exported.plan.folder), export=kept, proof=kept["proof"])
    if kept["proof"]["verdict"] == FAILED:
        return Result("failed", kept["results"])
    if destination is not None:
        message = f"Export {kept['name']} ({form.to}, {kept['weights']})"
        pushed = push_folder(out, destination, listener, message=message, retry=f"llm-lab run {folder.path} --resume")
        folder.update(pushed=pushed.record())
        listener(Notice(f"pushed: {pushed.url}"))
    return Result("done", kept["results"])


def results_of(exported: Exported) -> dict[str, float]:
    """Return the size, and the worst numbers of all checks."""
    checks = exported.verification.checks
    differences = [check.logit_difference for check in checks if check.logit_difference is not None]
    relative = [check.relative_logit_difference for check in checks if check.relative_logit_difference is not None]
    agreements = [check.greedy_agreement for check in checks if check.greedy_agreement is not None]
    found: dict[str, float] = {"size_bytes": exported.size_bytes}
    if differences:
        found["logit_difference"] = max(differences)
        found["relative_logit_difference"] = max(relative)
        found["greedy_agreement"] = min(agreements)
    return found


def export_into(
    checkpoint: str | Path,
    out: Path,
    listener: Listener,
    *,
    to: str = "hf",
    weights: str | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    repo: str | None = None,
    trust_remote_code: bool = False,
    key: str = "checkpoint",
) -> Exported:
    """Export a checkpoint into the folder `out`, which appears complete, and only if verification did not fail.

    repo: the owner/name on the Hub that the export will be pushed to, for its card. Raises UserError if the format does
    not support the model, or `out` is not empty.
    """
    from llm_lab.export.gguf_file import LEADING_SPACE
    from llm_lab.export.verify import ask, make_probe

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(Problem("--out", "the folder is not empty", value=out, fix="Name a new folder."))
    plan = plan_export(checkpoint, to=to, weights=weights, trust_remote_code=trust_remote_code, key=key)
    answers = read_answers(run_of(plan.folder) if Path(plan.folder).is_dir() else None)
    listener(Notice(f"exporting {plan.folder} as {plan.to}, {plan.weights}: {plan.describe()}"))
    for remark in plan.remarks:
        listener(Notice(remark))
    tokenizer = load_tokenizer(plan.folder, trust_remote_code=trust_remote_code, key=key)
    model = load_model(plan.folder, merge=True, trust_remote_code=trust_remote_code, key=key)
    probe = make_probe(model, tokenizer, seed=seed, trimmed=LEADING_SPACE in plan.remarks)
    ours = ask(model, tokenizer, probe)
    try:
        with staged_folder(out) as staged:
            made = staged / MODEL if plan.to == "space" else staged
            made.mkdir(parents=True)
            _write(plan, model, tokenizer, made)
            del model
            listener(Notice("verifying: loading it in a process without LLM Lab"))
            if plan.file:
                file = staged / plan.file
                verification = verify_gguf(file, probe, ours, plan.loads, weights=plan.weights, tolerance=tolerance)
            else:
                verification = verify_folder(
                    made, probe, ours, own_code=plan.own_code, weights=plan.weights, tolerance=tolerance
                )
            for check in verification.checks:
                listener(Notice(check.describe()))
            size = sum(file.stat().st_size for file in staged.rglob("*") if file.is_file())
            if verification.verdict == FAILED:
                shutil.rmtree(staged)
            else:
                write_card(made, source=plan.folder, proof=verification.as_dict(), repo=repo, answers=answers)
            if plan.to == "space" and verification.verdict != FAILED:
                merged = is_adapter(plan.folder)
                write_space(staged, source=plan.folder, name=plan.name, own_code=plan.own_code, merged=merged)
    except Exception as error:
        if not is_disk_error(error):
            raise
        raise not_written(out, error, "Free some space, then export again.") from error
    exported = Exported(plan, out, verification, size)
    _record_with_source(exported)
    return exported


def require_verified(exported: Exported) -> None:
    """Raise VerificationError with the numbers if verification failed."""
    if exported.verification.verdict == FAILED:
        numbers = exported.verification.describe()
        raise VerificationError(
            f"Verification failed: the exported model differs from the original, so it was deleted.\n{numbers}"
        )


def _write(plan: ExportPlan, model: Any, tokenizer: Any, folder: Path) -> None:
    import torch

    from llm_lab.hf.save import save_model, to_native

    if plan.file:
        from llm_lab.export.gguf_file import write_gguf

        native = to_native(model)
        write_gguf(native or model, tokenizer, folder / plan.file, weights=plan.weights, name=plan.name)
        return
    dtype = getattr(torch, DTYPES[plan.weights])
    model.to(dtype)
    model.config.dtype = dtype
    save_model(model, folder, tokenizer)


def _record_with_source(exported: Exported) -> None:
    """Record the export in the run that made the model."""
    run = run_of(exported.plan.folder) if Path(exported.plan.folder).is_dir() else None
    if run is not None:
        kept = run.facts().get("exports", [])
        others = [row for row in kept if row.get("path") != exported.record()["path"]]  # a repeated export has one row
        run.update(exports=[*others, {"created_at": now(), **exported.record()}])
