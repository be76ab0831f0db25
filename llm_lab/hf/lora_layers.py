"""LoRA: choose the layers that get an adapter, and attach a new adapter (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of
from llm_lab.estimate.formatting import percent

from .adapter import make_peft_model
from .load import rows_on_disk

if TYPE_CHECKING:
    from llm_lab.recipe.post_training import Lora

QUERIES = frozenset({"q_proj", "query", "q_lin", "wq", "q"})
VALUES = frozenset({"v_proj", "value", "v_lin", "wv", "v"})
# Queries, keys and values in one matrix: GPT-2, NeoX, Falcon, Phi-3, MPT.
FUSED = frozenset({"c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv", "W_pack"})
# Feed-forward layers directly in the block, as in OPT.
PLAIN_FEED_FORWARD = frozenset({"fc1", "fc2", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


@dataclass(frozen=True)
class Trainable:
    """The trainable parameters of a model: their names and number."""

    names: frozenset[str]
    parameters: int
    total: int

    @property
    def share(self) -> float:
        return self.parameters / self.total

    def describe(self) -> str:
        """Return a one-line summary."""
        return f"{self.parameters:,} of {self.total:,} parameters are trained ({percent(self.share, 2)})"


@dataclass(frozen=True)
class _Layer:
    """A linear layer of a block: its full name, and the parts of its name after the block number."""

    name: str
    inside: tuple[str, ...]

    @property
    def leaf(self) -> str:
        return self.inside[-1]

    @property
    def role(self) -> str | None:
        """ "attention" or "ffn", or None if the name does not show it."""
        for part in self.inside[:-1]:
            if "attn" in part.lower() or "attention" in part.lower():
                return "attention"
            if any(word in part.lower() for word in ("mlp", "ffn", "feed_forward", "feedforward")):
                return "ffn"
        return "ffn" if len(self.inside) == 1 and self.leaf in PLAIN_FEED_FORWARD else None


def target_modules(model: Any, preset: str, custom: Sequence[str] | None = None) -> list[str]:
    """Return the names (suffixes, as PEFT expects them) of the layers that a preset selects in this model.

    custom: the names for preset "custom". Raises UserError, listing the linear layers, if the names of the layers do
    not show their role, or if a custom name is not a layer.
    """
    if preset == "custom":
        return _check_custom(model, custom or ())
    layers = list(_block_layers(model))
    attention = [layer for layer in layers if layer.role == "attention"]
    feed_forward = [layer for layer in layers if layer.role == "ffn"]
    if preset == "minimal":
        separate = [{layer.leaf for layer in attention} & names for names in (QUERIES, VALUES)]
        wanted = separate[0] | separate[1] if all(separate) else {layer.leaf for layer in attention} & FUSED
        chosen = [layer for layer in attention if layer.leaf in wanted]
    else:
        chosen = {"attention_only": attention, "ffn_only": feed_forward, "all": layers}[preset]
    missing = []
    if preset != "ffn_only" and not attention:
        missing.append("attention")
    if preset in ("ffn_only", "all") and not feed_forward and not expert_matrices(model):
        missing.append("feed-forward")
    if preset == "minimal" and attention and not chosen:
        missing.append("query and value")
    if missing:
        raise UserError(
            Problem(
                "lora.preset",
                f"the {' and '.join(missing)} layers of {type(model).__name__} are not recognized by name; "
                f"its linear layers are {one_of(_suffixes(layers, layers)) or 'not in blocks'}",
                value=preset,
                fix="Set lora.preset=custom and lora.target_modules.",
            )
        )
    return _suffixes(chosen, layers)


def _block_layers(model: Any) -> Iterator[_Layer]:
    """Yield the linear layers of the decoder blocks: those with a number in their name."""
    for name, module in model.named_modules():
        parts = name.split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if number is not None and number + 1 < len(parts) and _is_linear(module):
            # The number of an expert does not matter for the role of a layer.
            yield _Layer(name, tuple(part for part in parts[number + 1 :] if not part.isdigit()))


def _is_linear(module: Any) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def expert_matrices(model: Any) -> list[str]:
    """Return the ends of the names of tensors with one matrix per expert, which are not linear layers."""
    fused = [name for name, parameter in model.named_parameters() if parameter.ndim == 3 and "expert" in name]
    return list(dict.fromkeys(".".join(name.split(".")[-3:]) for name in fused))


def _suffixes(chosen: Iterable[_Layer], layers: Iterable[_Layer]) -> list[str]:
    """Return the shortest suffixes that match only the chosen layers: GPT-2 has a c_proj in attention and MLP."""
    chosen = list(chosen)
    names = {layer.name for layer in chosen}
    others = [layer for layer in layers if layer.name not in names]
    found: dict[str, None] = {}
    for layer in chosen:
        for length in range(1, len(layer.inside) + 1):
            suffix = ".".join(layer.inside[-length:])
            if not any(_matches(suffix, other.name) for other in others):
                break
        found[suffix] = None
    return list(found)


def _matches(suffix: str, name: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _check_custom(model: Any, names: Sequence[str]) -> list[str]:
    from torch import nn

    known = [name for name, module in model.named_modules() if _is_linear(module) or isinstance(module, nn.Embedding)]
    short = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
    if not names:
        why = "lora.preset=custom requires the names of the layers"
        raise UserError(Problem("lora.target_modules", why, allowed=one_of(short)))
    problems = []
    ends = {name for name, module in model.named_modules() if module is model.get_input_embeddings()}
    ends |= {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    for name in names:
        matching = [layer for layer in known if _matches(name, layer)]
        if not matching:
            why, fix = f"{type(model).__name__} has no such layer", did_you_mean(name, short)
        elif model.config.get_text_config().tie_word_embeddings and ends & set(matching):
            why = "embeddings and head are tied in this model, and an adapter would untie them"
            fix = "Remove it: the rows of new tokens are trained anyway."
        else:
            continue
        problems.append(Problem("lora.target_modules", why, value=name, allowed=one_of(short), fix=fix))
    if problems:
        raise UserError(*problems)
    return list(names)


def attach_lora(
    model: Any,
    options: Lora,
    *,
    seed: int,
    new_token_ids: Iterable[int] = (),
    control_ids: Iterable[int] = (),
) -> Any:
    """Return the model with a new adapter, as a PeftModel: the adapter is trained, the rest is frozen.

    options: the lora group of a resolved recipe. new_token_ids: tokens whose rows in embeddings and head are also
    trained, in addition to tokens for which the base on disk has no rows. control_ids: other tokens whose rows are
    trained if the model allows it. The score head of a reward model is trained in full. The same seed gives the same
    adapter. Raises UserError if a preset or a name does not match the model.
    """
    import torch
    from peft import LoraConfig, TaskType, prepare_model_for_kbit_training

    assert options.dropout is not None, "derived when the recipe is resolved"
    targets = target_modules(model, options.preset, options.target_modules)
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    experts = expert_matrices(model) if options.preset in ("ffn_only", "all") else []
    for key, value, off in (("dropout", options.dropout, 0), ("use_dora", options.use_dora, False)):
        if experts and value:
            why = "adapters on the experts of a mixture don't support it"
            fix = f"Set it to {str(off).lower()}, or use lora.preset=attention_only."
            raise UserError(Problem(f"lora.{key}", why, value=value, fix=fix))
    is_classifier = hasattr(model, "score")
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=targets,
        target_parameters=experts or None,
        modules_to_save=["score"] if is_classifier else None,
        trainable_token_indices=_rows_to_train(model, new_token_ids, control_ids, targets),
        task_type=TaskType.SEQ_CLS if is_classifier else TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        adapted = make_peft_model(model, config)
    # Absolute, so the adapter finds its base from any working directory.
    base = model.name_or_path
    adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    assert describe_trainable(adapted).parameters > 0
    return adapted


def _rows_to_train(model: Any, new_token_ids: Iterable[int], control_ids: Iterable[int], targets: Sequence[str]) -> Any:
    """Return PEFT's trainable_token_indices for the embeddings and, if it is a separate matrix, the head."""
    rows = model.get_input_embeddings().weight.shape[0]
    new = {*new_token_ids, *range(rows_on_disk(model.name_or_path) or rows, rows)}
    ids = sorted({*new, *control_ids})
    if not ids:
        return None
    head = model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    own_head = head is not None and head.weight is not model.get_input_embeddings().weight
    ends = [names[id(model.get_input_embeddings())], *([names[id(head)]] if own_head else [])]
    has_adapter = any(_matches(target, end) for target in targets for end in ends)
    has_bias = getattr(head, "bias", None) is not None
    if not new and (has_adapter or has_bias):
        return None
    if has_adapter:
        why = "the rows of new tokens are trained in full, so their layer can't have an adapter"
        raise UserError(Problem("lora.target_modules", why, fix="Remove embeddings and head."))
    if has_bias:
        # PEFT ignores the bias of such a head.
        why = f"{type(model).__name__} has a bias in its head, so new token rows can't be trained with LoRA"
        fix = "Use a chat template whose tokens the model already has, or remove lora."
        raise UserError(Problem("lora", why, fix=fix))
    return dict.fromkeys(ends, ids) if own_head else ids


def describe_trainable(model: Any) -> Trainable:
    """Return the trainable parameters of a model."""
    names = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if hasattr(model, "get_nb_trainable_parameters"):  # PEFT counts the weights in 4-bit tensors correctly
        trained, total = model.get_nb_trainable_parameters()
        return Trainable(names, trained, total)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return Trainable(names, sum(sizes[name] for name in names), sum(sizes.values()))
