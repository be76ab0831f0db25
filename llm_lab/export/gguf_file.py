"""A causal LM and its tokenizer as one GGUF file, for llama.cpp and programs based on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.compatibility import rope_of, what_loads

BLOCK = 32  # weights per scale in q8_0
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",  # the router of experts
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_GPT2_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_GPT2_WHOLE = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types in GGUF
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # GGUF's names for the two kinds of BPE
LEADING_SPACE = "programs that read GGUF tokenize a leading space differently"
SPACE = "\u2581"  # a space in SentencePiece's tokens

# llama.cpp selects the pre-tokenizer by name. The default regex of ByteLevel is GPT-2's:
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# {(regex, ignore_merges): llama.cpp's name}; ignore_merges: a word that is itself a token is used without merging.
PRE_TOKENIZERS = {(GPT2, False): "gpt-2", (LLAMA3, True): "llama-bpe", (QWEN2, False): "qwen2"}


def write_gguf(model: Any, tokenizer: Any, path: Path, *, weights: str, name: str, key: str = "export.to") -> None:
    """Write a Llama, Mistral, Mixtral, Qwen2, Qwen3, Qwen3-MoE or GPT-2 causal LM of transformers into one GGUF file.

    weights: f32, f16, bf16 or q8_0. name: the model's name in the file. Raises UserError with the reason if GGUF does
    not support the model or its tokenizer.
    """
    config = model.config.to_dict()
    loads = what_loads(config)
    if loads.gguf is None:
        raise UserError(Problem(key, loads.gguf_reason, value="gguf", fix="Export it with --to hf."))
    rows = model.get_input_embeddings().weight.shape[0]
    end = getattr(model.generation_config, "eos_token_id", None)
    ends = tuple(end) if isinstance(end, list) else (end,)
    words = read_tokenizer(tokenizer, rows, ends)
    writer = _make_writer(path, loads.gguf)
    _add_general(writer, name, rows, weights)
    (_add_gpt2_shape if loads.gguf == "gpt2" else _add_shape)(writer, config)
    _add_tokenizer(writer, words)
    import torch

    with torch.no_grad():
        for tensor, values in _tensors(model, loads.gguf):
            precise = "f32" if "ffn_gate_inp" in tensor else weights  # llama.cpp's routers are always f32
            kept, kind = _pack(values.float().cpu().numpy(), precise)
            writer.add_tensor(tensor, kept, raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _make_writer(path: Path, architecture: str) -> Any:
    import gguf

    class Writer(gguf.GGUFWriter):
        """Writes empty lists too: a byte tokenizer has no merges, but llama.cpp requires the list."""

        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if vtype is gguf.GGUFValueType.ARRAY and len(val) == 0:
                head = self._pack("I", vtype) if add_vtype else b""
                return bytes(head + self._pack("I", sub_type) + self._pack("Q", 0))
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))

    return Writer(path, architecture)


def _add_general(writer: Any, name: str, rows: int, weights: str) -> None:
    import gguf

    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_type("model")
    # transformers mistakes a llama file with the exact name "mistral" for another architecture, and fails.
    writer.add_name("Mistral" if name == "mistral" else name)
    writer.add_file_type(getattr(gguf.LlamaFileType, types[weights]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(rows)


def _add_gpt2_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    if experts := config.get("num_local_experts") or config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config.get("moe_intermediate_size") or config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = rope_of(config)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_tokenizer(writer: Any, words: GgufTokenizer) -> None:
    import gguf

    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.kind == SENTENCEPIECE:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.prefix)
    merges = gguf.Keys.Tokenizer.MERGES
    writer.add_key_value(merges, words.merges, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    if words.bos is not None:
        writer.add_bos_token_id(words.bos)
    writer.add_eos_token_id(words.ends[0])
    if len(words.ends) > 1:
        writer.add_eot_token_id(words.ends[1])
    if words.pad is not None:
        writer.add_pad_token_id(words.pad)
    if words.unk is not None:
        writer.add_unk_token_id(words.unk)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    if words.chat_template:
        writer.add_chat_template(words.chat_template)


def _tensors(model: Any, architecture: str) -> Iterator[tuple[str, Any]]:
    """Yield (GGUF name, values) of every weight; a tied head is left out, because GGUF then uses the embeddings."""
    config = model.config
    inner_names, outer_names = (_GPT2_LAYER, _GPT2_WHOLE) if architecture == "gpt2" else (_LAYER, _WHOLE)
    if rope_of(config.to_dict())["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_divisors(config)
    for name, values in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module.endswith(".mlp.experts"):
            yield from _experts(f"blk.{module.split('.')[2]}", kind, values)
            continue
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        layer = re.fullmatch(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)", module)
        inner = inner_names.get(layer[2]) if layer else None
        found = f"blk.{layer[1]}.{inner}" if layer and inner else outer_names.get(module)
        if found is None:
            raise UserError(Problem("export.to", f"GGUF does not support the weight {name}", value="gguf"))
        if architecture == "llama" and inner in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if inner == "attn_q" else config.num_key_value_heads
            values = interleave_rotary(values, heads)
        elif architecture == "gpt2" and inner and values.ndim == 2:
            values = values.T  # GPT-2 stores its matrices as (inputs, outputs)
        yield f"{found}.{kind}", values


def _experts(block: str, kind: str, values: Any) -> Iterator[tuple[str, Any]]:
    """Yield the matrices of all experts of a layer: (experts, outputs, inputs)."""
    if kind == "down_proj":
        yield f"{block}.ffn_down_exps.weight", values
        return
    gate, up = values.chunk(2, dim=1)
    yield f"{block}.ffn_gate_exps.weight", gate.contiguous()
    yield f"{block}.ffn_up_exps.weight", up.contiguous()


def _llama3_divisors(config: Any) -> Any:
    """Return the divisor of each RoPE frequency in Llama 3's scaling, which GGUF stores as a tensor."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    steps = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    return config.rope_parameters["rope_theta"] ** -steps / scaled


def interleave_rotary(values: Any, heads: int) -> Any:
    """Return query or key rows with the two halves of each head interleaved.

    RoPE rotates adjacent pairs in GGUF's Llama, as in Meta's, and the two halves of a head in Hugging Face's.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _pack(values: Any, weights: str) -> tuple[Any, Any]:
    """Return a weight in its stored form, and its GGML type.

    Vectors are always f32. With q8_0, a matrix whose rows are not a multiple of BLOCK is f16.
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    kind = {"f32": kinds.F32, "f16": kinds.F16, "bf16": kinds.BF16, "q8_0": kinds.Q8_0}[weights]
    if values.ndim == 1:
        kind = kinds.F32
    elif kind is kinds.Q8_0 and values.shape[-1] % BLOCK:
        kind = kinds.F16
    return gguf.quants.quantize(values, kind), kind


# The tokenizer


@dataclass(frozen=True)
class GgufTokenizer:
    """A byte-level or SentencePiece BPE as GGUF metadata.

    scores: SentencePiece's merge order, one number per token. prefix: whether a space is added at the start of a text.
    ends: the ids of end tokens, the tokenizer's EOS first. remarks: how llama.cpp differs from this tokenizer.
    """

    kind: str
    pre: str
    prefix: bool
    scores: tuple[float, ...]
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int | None
    ends: tuple[int, ...]
    pad: int | None
    unk: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    remarks: tuple[str, ...]


def read_tokenizer(tokenizer: Any, rows: int, ends: tuple[int, ...] = (), *, key: str = "tokenizer") -> GgufTokenizer:
    """Return a tokenizer as GGUF metadata.

    rows: the number of embedding rows; rows without a token become unused tokens. ends: further end tokens, from the
    generation config. Raises UserError if llama.cpp has no tokenizer that splits text in the same way.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    prefix = sentencepiece_prefix(backend)
    pre, why = ("default", "") if prefix is not None else find_pre_tokenizer(backend)
    if pre is None:
        fix = "Export it with --to hf."
        raise UserError(Problem(key, f"GGUF does not support this tokenizer: {why}", fix=fix))
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= rows:
        why = f"the tokenizer has {max(vocabulary.values()) + 1:,} tokens, but the model only {rows:,} embedding rows"
        raise UserError(Problem(key, why))
    names = {number: token for token, number in vocabulary.items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        tokens.append(names.get(number, f"[PAD{number}]"))
        types.append(_type_of(number, names, added, tokenizer.unk_token_id if prefix is not None else None))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    ends = tuple(dict.fromkeys(end for end in (tokenizer.eos_token_id, *ends) if end is not None))
    if not ends:
        raise UserError(Problem(key, "it has no end token, and llama.cpp would use token 11 instead"))
    empty = tokenizer("")["input_ids"]
    return GgufTokenizer(
        kind=BYTE_LEVEL if prefix is None else SENTENCEPIECE,
        pre=pre,
        prefix=bool(prefix),
        scores=() if prefix is None else tuple(_scores(tokens, merges)),
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(merges),
        bos=tokenizer.bos_token_id,
        ends=ends,
        pad=tokenizer.pad_token_id,
        unk=tokenizer.unk_token_id,
        add_bos=empty[:1] == [tokenizer.bos_token_id],
        add_eos=len(empty) > 0 and empty[-1:] == [tokenizer.eos_token_id] != empty[:1],
        chat_template=_plain_template(tokenizer.chat_template),
        remarks=tuple(_remarks(backend, added.values())),
    )


def _type_of(number: int, names: Mapping[int, str], added: Mapping[int, Any], unknown: int | None) -> int:
    if number not in names:
        return UNUSED
    if number == unknown:
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].special else USER_DEFINED
    return BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", names[number]) else NORMAL


def sentencepiece_prefix(backend: Mapping[str, Any]) -> bool | None:
    """Return whether a SentencePiece tokenizer adds a space at the start of a text; None for other tokenizers."""
    model, normal, split = backend["model"], backend.get("normalizer"), backend.get("pre_tokenizer")
    if model["type"] != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    if normal is None and split and split["type"] == "Metaspace":
        known = split["replacement"] == SPACE and not split.get("split", True)
        return split["prepend_scheme"] != "never" if known else None
    steps = normal["normalizers"] if normal and normal["type"] == "Sequence" else [normal] if normal else []
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if split is None and steps == [{"type": "Prepend", "prepend": SPACE}, replaces]:
        return True
    return False if split is None and steps == [replaces] else None


def adds_space_after_control_tokens(tokenizer: Any) -> bool:
    """Return whether a SentencePiece tokenizer is a legacy one, which adds a space after each control token too."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return bool(sentencepiece_prefix(backend)) and backend.get("normalizer") is not None


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> Iterator[float]:
    """Yield a score for each token: llama.cpp merges into the token with the highest score first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    last = -float(len(merges) + 1)
    for token in tokens:
        yield -float(ranks[token]) if token in ranks else last


def _remarks(backend: Mapping[str, Any], added: Iterable[Any]) -> Iterator[str]:
    if sentencepiece_prefix(backend) is not None:
        yield LEADING_SPACE
    if backend.get("normalizer") and backend["normalizer"]["type"] == "NFC":
        yield "the tokenizer normalizes text to NFC, which llama.cpp does not"
    greedy = [token.content for token in added if token.lstrip or token.rstrip or token.single_word]
    if greedy:
        yield f"in llama.cpp, {greedy[0]} does not strip the white space around it"


def _plain_template(template: Any) -> str | None:
    """Return a chat template without {% generation %}, which only transformers supports."""
    if not isinstance(template, str):
        return None
    return re.sub(r"\{%(-?)\s*((?:end)?generation)\s*(-?)%\}", r"{#\1 \2 \3#}", template)


def find_pre_tokenizer(backend: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (llama.cpp's name for the pre-tokenizer of a tokenizer.json, or None; the reason)."""
    model = backend["model"]
    if model["type"] != "BPE":
        return None, f"it is a {model['type']} model, not a byte-level BPE"
    if model.get("byte_fallback"):
        return None, "it is a SentencePiece tokenizer with a custom normalizer"
    normal = backend.get("normalizer")
    if normal and not (normal["type"] == "NFC" or normal == {"type": "Sequence", "normalizers": []}):
        return None, f"it has a {normal['type']} normalizer"
    expression, why = _split_expression(backend.get("pre_tokenizer"))
    if expression is None:
        return None, why
    whole = bool(model.get("ignore_merges"))
    pre = PRE_TOKENIZERS.get((expression, whole))
    if pre is None:
        return None, "its pre-tokenizer is not one of llama.cpp's"
    if (normal is not None) != (pre == "qwen2"):
        return None, "its normalizer differs from that of llama.cpp's tokenizer"
    return pre, f"llama.cpp's {pre}"


def _split_expression(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str | None, str]:
    """Return the regex of a pre-tokenizer, or None and the reason."""
    steps = [pre_tokenizer] if pre_tokenizer else []
    if steps and steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    if not steps or steps[-1]["type"] != "ByteLevel":
        return None, "it is not byte-level"
    if steps[-1].get("add_prefix_space"):
        return None, "it adds a space before the text"
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2, ""
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        step = steps[0]
        if step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            return step["pattern"]["Regex"], ""
    return None, "its pre-tokenizer is not one of llama.cpp's"
