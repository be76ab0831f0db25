"""The plan of an export: format, files, and what can load it. Made before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.compatibility import BOTH, Loads, what_loads
from llm_lab.estimate.parameters import shape_at
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.configs import read_config, require_causal_lm
from llm_lab.hf.load import quiet_libraries
from llm_lab.hf.save import lab_config, native_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.export import gguf_weights
from llm_lab.runs.folder import find_checkpoint, is_reward_model, run_of, slug

from .space import MODEL, space_files

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True)
class ExportPlan:
    """What an export will contain. folder: the model's folder, or a Hub name.

    files: (name, bytes or None if unknown) of each written file. remarks: what the export loses, or what is not
    compared.
    """

    folder: str
    to: str
    weights: str
    name: str
    loads: Loads
    files: tuple[tuple[str, int | None], ...]
    remarks: tuple[str, ...] = ()

    @property
    def own_code(self) -> bool:
        """Whether loading the export requires trust_remote_code."""
        return self.loads.architecture is None

    @property
    def file(self) -> str | None:
        """The name of the GGUF file."""
        return f"{self.name}-{self.weights}.gguf" if self.to == "gguf" else None

    def describe(self) -> str:
        """Return in one line what can load the export."""
        if self.to == "gguf":
            return self.loads.gguf_reason
        return f"{self.loads.native_reason}{' (trust_remote_code=True)' if self.own_code else ''}"


def plan_export(
    checkpoint: str | Path,
    *,
    to: str = "hf",
    weights: str | None = None,
    trust_remote_code: bool = False,
    key: str = "checkpoint",
) -> ExportPlan:
    """Plan an export from a checkpoint's config and tokenizer.

    Raises UserError with the reason if the format does not support the model.
    """
    quiet_libraries()
    folder = find_checkpoint(str(checkpoint))
    shape = shape_at(folder) if Path(folder).exists() else None
    if is_reward_model(Path(folder)):
        raise UserError(Problem(key, "exporting reward models is not supported", value=folder))
    base = _base_of(folder, key)
    config = read_config(base, key=key, trust_remote_code=trust_remote_code)
    require_causal_lm(config, base, key=key)
    if getattr(config, "quantization_config", None):
        raise UserError(
            Problem(
                key,
                "exporting quantized weights is not supported",
                value=base,
                fix="Use the model's unquantized version.",
            )
        )
    ours = config if config.model_type == "llm_lab" else lab_config(config)
    written = (native_config(ours) or ours) if ours is not None else config
    loads = what_loads(written.to_dict())
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code, key=key)
    rows, tokens = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values()) + 1
    # An adapter can add tokens to its base; the rows are checked again when the weights are written.
    rows = rows if base == folder else max(rows, tokens)
    remarks = tuple(_remarks(tokenizer, tokens, rows))
    if to == "gguf":
        weights = weights or gguf_weights(shape)[0]
        if loads.gguf is None:
            fix = "Export it with --to hf."
            raise UserError(Problem("export.to", loads.gguf_reason, value="gguf", fix=fix))
        from .gguf_file import adds_space_after_control_tokens, read_tokenizer

        if tokenizer.chat_template and adds_space_after_control_tokens(tokenizer):
            why = "this tokenizer adds a space after a control token, which Transformers leaves out of a GGUF file"
            loads = replace(loads, gguf_readers=BOTH[:1], gguf_reason=f"{loads.gguf_reason}; {why}")
        remarks += read_tokenizer(tokenizer, rows, key=key).remarks
    weights = weights or next((w for w, dtype in DTYPES.items() if dtype == _dtype(config)), "f32")
    name = _name_of(folder)
    plan = ExportPlan(folder, to, weights, name, loads, (), remarks)
    size = int(shape.parameters * BYTES[weights]) if shape else None
    return replace(plan, files=tuple(_files(plan, ours, size, bool(tokenizer.chat_template))))


def _remarks(tokenizer: Any, tokens: int, rows: int) -> Iterator[str]:
    from .verify import chat_text

    if tokens > rows:
        yield f"the tokenizer has {tokens:,} tokens, but the model only {rows:,} embedding rows for them"
    if tokenizer.chat_template and chat_text(tokenizer) is None:
        yield "the chat template fails on a plain question, so it is exported but not compared"


def _base_of(folder: str, key: str) -> str:
    """Return the whole model under an adapter."""
    while is_adapter(folder):
        adapter = read_adapter(folder, key=key)
        if adapter.task == "SEQ_CLS":
            raise UserError(Problem(key, "exporting the adapter of a reward model is not supported", value=folder))
        folder = adapter.base
    return folder


def _dtype(config: Any) -> str:
    return str(config.dtype).removeprefix("torch.")


def _name_of(folder: str) -> str:
    """Return a name for the exported model: that of its run, its folder, or its Hub repository."""
    run = run_of(folder) if Path(folder).is_dir() else None
    name = (
        run.path.resolve().name if run else Path(folder).resolve().name if Path(folder).is_dir() else Path(folder).name
    )
    return slug(name, "model")


def _files(plan: ExportPlan, ours: Any, size: int | None, chats: bool) -> list[tuple[str, int | None]]:
    """Return the files that the export writes. size: bytes of the weights, if known."""
    if plan.file:
        return [(plan.file, size), ("README.md", None)]
    if plan.to == "space":
        model = _files(replace(plan, to="hf"), ours, size, chats)
        return [*((f"{MODEL}/{name}", size) for name, size in model), *space_files()]
    names: list[tuple[str, int | None]] = [("config.json", None), ("generation_config.json", None)]
    if plan.own_code and ours is not None:
        code = Path(__file__).resolve().parent.parent / "model"
        names += [(file.name, file.stat().st_size) for file in sorted(code.glob("*.py")) if file.stem != "__init__"]
    names += [("model.safetensors", size), ("tokenizer.json", None), ("tokenizer_config.json", None)]
    return [*names, *([("chat_template.jinja", None)] if chats else []), ("README.md", None)]
