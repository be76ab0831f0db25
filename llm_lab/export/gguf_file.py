"""A causal LM and its tokenizer as one GGUF file, for llama.cpp and the programs built on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.compatibility import rope_of, what_loads

from .gguf_tokenizer import SENTENCEPIECE, GgufTokenizer, read_tokenizer

BLOCK = 32  # weights that share a scale in q8_0
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(model: Any, tokenizer: Any, path: Path, *, weights: str, name: str, key: str = "export.to") -> None:
    """Write a LlamaForCausalLM, or one of Mistral, Qwen2 or Qwen3, into one file.

    weights: f32, f16, bf16 or q8_0. name: the model's, kept in the file. UserError, with the reason, for what GGUF does
    not hold.
    """
    config = model.config.to_dict()
    loads = what_loads(config)
    if loads.gguf is None:
        raise UserError(Problem(key, loads.gguf_reason, value="gguf", fix="The Hugging Face form takes it: --to hf"))
    rows = model.get_input_embeddings().weight.shape[0]
    end = getattr(model.generation_config, "eos_token_id", None)
    ends = tuple(end) if isinstance(end, list) else (end,)
    words = read_tokenizer(tokenizer, rows, ends)
    writer = _make_writer(path, loads.gguf)
    _add_shape(writer, config, name, rows, weights)
    _add_tokenizer(writer, words)
    import torch

    with torch.no_grad():
        for tensor, values in _tensors(model, loads.gguf):
            kept, kind = _pack(values.float().cpu().numpy(), weights)
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
        """One that writes an empty list: bytes have no merges, and llama.cpp wants the list all the same."""

        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if vtype is gguf.GGUFValueType.ARRAY and len(val) == 0:
                head = self._pack("I", vtype) if add_vtype else b""
                return bytes(head + self._pack("I", sub_type) + self._pack("Q", 0))
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))

    return Writer(path, architecture)


def _add_shape(writer: Any, config: dict[str, Any], name: str, rows: int, weights: str) -> None:
    import gguf

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_type("model")
    # By the very name "mistral" Transformers' reader takes a llama file for another architecture, and then fails.
    writer.add_name("Mistral" if name == "mistral" else name)
    writer.add_file_type(getattr(gguf.LlamaFileType, types[weights]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(rows)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
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
    """Yield (GGUF's name, values) of every weight; a tied head is left out, and stands for the embeddings."""
    config = model.config
    if rope_of(config.to_dict())["rope_type"] == "llama3":
        yield "rope_freqs.weight", _stretched_frequencies(config)
    for name, values in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        inner = _LAYER.get(layer[2]) if layer else None
        found = f"blk.{layer[1]}.{inner}" if inner else _WHOLE.get(module)
        if found is None:
            raise UserError(Problem("export.to", f"GGUF has no place for the weight {name}", value="gguf"))
        if architecture == "llama" and inner in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if inner == "attn_q" else config.num_key_value_heads
            values = interleave_rotary(values, heads)
        yield f"{found}.{kind}", values


def _stretched_frequencies(config: Any) -> Any:
    """Return what each frequency of RoPE is divided by in Llama 3's stretching: GGUF keeps it as a tensor."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    steps = torch.arange(len(stretched), dtype=torch.float32) / len(stretched)
    return config.rope_parameters["rope_theta"] ** -steps / stretched


def interleave_rotary(values: Any, heads: int) -> Any:
    """Return query or key rows with the two halves of each head taken in turn.

    GGUF's Llama turns neighbours by RoPE, as Meta's did, where Hugging Face's turns the halves of a head.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _pack(values: Any, weights: str) -> tuple[Any, Any]:
    """Return a weight as it is kept, and its type: vectors are always f32."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    kind = {"f32": kinds.F32, "f16": kinds.F16, "bf16": kinds.BF16, "q8_0": kinds.Q8_0}[weights]
    if values.ndim == 1:
        kind = kinds.F32
    elif kind is kinds.Q8_0 and values.shape[-1] % BLOCK:
        kind = kinds.F16
    return gguf.quants.quantize(values, kind), kind
