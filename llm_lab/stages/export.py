"""The export of a checkpoint into a form for others to load, proven by loading it as they do."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.events import Listener, Notice
from llm_lab.export.plan import DTYPES, ExportPlan, plan_export
from llm_lab.export.proof import FAILED, Proof, prove_folder, prove_gguf
from llm_lab.export.push import push_folder
from llm_lab.export.repository import find_destination
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.runs.card import write_card
from llm_lab.runs.folder import RunFolder, now, run_of
from llm_lab.training.loop import Result, describe_parent

if TYPE_CHECKING:
    from llm_lab.recipe.export import ExportRecipe

GGUF_FOLDER = "gguf"


class ProofError(LabError):
    """The export was written, and what loads from it is another model."""

    exit_code = 1


@dataclass(frozen=True)
class Exported:
    """An export that was written into `folder` and tried; not kept where the proof failed."""

    plan: ExportPlan
    folder: Path
    proof: Proof
    size_bytes: int

    def record(self) -> dict[str, Any]:
        """Return it for run.json."""
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
            "proof": self.proof.as_dict(),
        }


def run(recipe: ExportRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Export the recipe's checkpoint into the run's model/, or its gguf/, and send it where `push` says."""
    form = recipe.export
    out = folder.model_path if form.to == "hf" else folder.path / GGUF_FOLDER
    destination = find_destination(form.push, private=form.private) if form.push else None
    kept = folder.facts().get("export") if resume and out.exists() else None
    if kept is None:
        shutil.rmtree(out, ignore_errors=True)  # half of what was published, if anything
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
        pushed = push_folder(out, destination, listener, message=message, again=f"llm-lab run {folder.path} --resume")
        folder.update(pushed=pushed.record())
        listener(Notice(f"sent: {pushed.url}"))
    return Result("done", kept["results"])


def results_of(exported: Exported) -> dict[str, float]:
    """Return the worst numbers of all that was tried."""
    tried = [check for check in exported.proof.checks if check.logit_difference is not None]
    found: dict[str, float] = {"size_bytes": exported.size_bytes}
    if tried:
        found["logit_difference"] = max(check.logit_difference for check in tried)
        found["relative_logit_difference"] = max(check.relative_logit_difference for check in tried)
        found["greedy_agreement"] = min(check.greedy_agreement for check in tried)
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
    """Export a checkpoint into the folder `out`, which appears whole and only if its proof did not fail.

    repo: owner/name on the Hub where it is going to be sent, for its card.
    UserError where the form can't hold the model, and where `out` holds something.
    """
    from safetensors import SafetensorError

    from llm_lab.export.gguf_tokenizer import LEADING_SPACE
    from llm_lab.export.probe import ask, make_probe
    from llm_lab.training.trainer import publish

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(Problem("--out", "there is something here already", value=out, fix="Name a new folder."))
    plan = plan_export(checkpoint, to=to, weights=weights, trust_remote_code=trust_remote_code, key=key)
    listener(Notice(f"exporting {plan.folder} as {plan.to}, {plan.weights}: {plan.describe()}"))
    for remark in plan.remarks:
        listener(Notice(remark))
    tokenizer = load_tokenizer(plan.folder, trust_remote_code=trust_remote_code, key=key)
    model = load_model(plan.folder, merge=True, trust_remote_code=trust_remote_code, key=key)
    probe = make_probe(model, tokenizer, seed=seed, trimmed=LEADING_SPACE in plan.remarks)
    ours = ask(model, tokenizer, probe)
    staged = out.resolve().with_name(f".{out.resolve().name}.exporting")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        _write(plan, model, tokenizer, staged)
        del model
        listener(Notice("loading it in a process without LLM Lab, and comparing"))
        options = {"weights": plan.weights, "tolerance": tolerance}
        if plan.file:
            proof = prove_gguf(staged / plan.file, probe, ours, plan.loads, **options)
        else:
            proof = prove_folder(staged, probe, ours, own_code=plan.own_code, **options)
        for check in proof.checks:
            listener(Notice(check.describe()))
        size = sum(file.stat().st_size for file in staged.rglob("*") if file.is_file())
        if proof.verdict != FAILED:
            write_card(staged, source=plan.folder, proof=proof.as_dict(), repo=repo)
            publish(staged, out)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise LabError(f"{out}: the export could not be written: {why}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    exported = Exported(plan, out, proof, size)
    _remember(exported)
    return exported


def require_proof(exported: Exported) -> None:
    """ProofError, with the numbers, where the proof failed."""
    if exported.proof.verdict == FAILED:
        raise ProofError(
            f"The proof failed, so nothing is kept: what loads is another model.\n{exported.proof.describe()}"
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


def _remember(exported: Exported) -> None:
    """Keep with the run that made the model what it was exported to, and whether that was proven."""
    run = run_of(exported.plan.folder) if Path(exported.plan.folder).is_dir() else None
    if run is not None:
        kept = run.facts().get("exports", [])
        run.update(exports=[*kept, {"created_at": now(), **exported.record()}])
