"""A decoder composed of the parts in a `LabConfig`, as a Hugging Face model.

Parameter names are Llama's, so weights whose parts Llama, Mistral or Qwen3 also have can be loaded there.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .attention import Attention, eager_attention
from .block import Block
from .configuration_lab import FULL, SLIDING, LabConfig
from .feed_forward import FeedForward
from .masks import alibi_mask_and_bias, refuse_kernel_without_bias, token_positions
from .norms import make_norm
from .older_transformers import capture_outputs, find_attention, init, make_attention_mask
from .positions import Alibi, Learned, Rope, Sinusoidal, Yarn


def make_positions(config: LabConfig) -> Sinusoidal | Learned | Rope | Yarn | Alibi:
    """Return the position embedding of a configuration."""
    if config.position_embedding == "sinusoidal":
        return Sinusoidal(config.hidden_size)
    if config.position_embedding == "learned":
        return Learned(config.max_position_embeddings, config.hidden_size)
    if config.position_embedding == "alibi":
        return Alibi(config.num_attention_heads)
    assert config.rope_parameters is not None, "set by LabConfig"
    rope = {name: value for name, value in config.rope_parameters.items() if value is not None}
    rope["theta"] = rope.pop("rope_theta")
    return {"default": Rope, "yarn": Yarn}[rope.pop("rope_type")](config.head_dim, **rope)


def has_value_embedding(config: LabConfig, layer_idx: int) -> bool:
    """Return whether a layer has a value embedding: every second one does, and always the last."""
    return config.value_embeddings and (config.num_hidden_layers - 1 - layer_idx) % 2 == 0


def make_block(config: LabConfig, layer_idx: int) -> Block:
    """Return a decoder block for a configuration."""
    # Derived by LabConfig if not set.
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    assert config.intermediate_size is not None
    assert config.layer_types is not None
    attention = Attention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        layer_idx,
        bias=config.attention_bias,
        qk_norm_eps=config.norm_eps if config.qk_norm else None,
        sliding_window=config.sliding_window if config.layer_types[layer_idx] == SLIDING else None,
        dropout=config.attention_dropout,
    )
    feed_forward = FeedForward(config.hidden_size, config.intermediate_size, config.activation, config.mlp_bias)
    before, after = (make_norm(config.norm, config.hidden_size, config.norm_eps) for _ in range(2))
    return Block(attention, feed_forward, before, after, dropout=config.hidden_dropout)


class LabPreTrainedModel(PreTrainedModel):
    """Base class: weight initialization, and the features of transformers that all models of these parts support."""

    config: LabConfig
    config_class = LabConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Block, "attentions": Attention}  # noqa: RUF012

    def __init__(self, config: LabConfig, *args: Any, **kwargs: Any) -> None:
        if config.position_embedding == "alibi":
            refuse_kernel_without_bias(config._attn_implementation or "sdpa")
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize with normal weights, scaled by 1/sqrt(2 layers) where they add to the residual, as in GPT-2.

        With `zero_init`, the latter start at zero instead.
        """
        if isinstance(module, LabModel) and self.config.residual_scalars:
            init.ones_(module.residual_scalars)
            init.zeros_(module.x0_scalars)
        if not getattr(module, "adds_to_residual", False):
            return super()._init_weights(module)
        depth_scale = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        if self.config.zero_init:
            init.zeros_(module.weight)
        else:
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range * depth_scale)
        if module.bias is not None:
            init.zeros_(module.bias)

    def _resize_token_embeddings(self, new_num_tokens: int, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the value embeddings too: a new token adds nothing to the values."""
        resized = super()._resize_token_embeddings(new_num_tokens, *args, **kwargs)
        base: Any = getattr(self, self.base_model_prefix, self)
        for name, table in getattr(base, "value_embeddings", {}).items():
            rows = resized.num_embeddings
            new = nn.Embedding(rows, table.embedding_dim, device=table.weight.device, dtype=table.weight.dtype)
            kept = min(rows, table.num_embeddings)
            with torch.no_grad():
                new.weight.zero_()
                new.weight[:kept] = table.weight[:kept]
            base.value_embeddings[name] = new.requires_grad_(table.weight.requires_grad)
        return resized


class LabModel(LabPreTrainedModel):
    """Embeddings, blocks and the final norm.

    With `residual_scalars`, layer i gets residual_scalars[i] * x + x0_scalars[i] * x0, where x0 enters the first layer
    (modded-nanogpt, nanochat). With `value_embeddings`, every second layer has a table of vectors, one per token, which
    it adds to its values (modded-nanogpt, nanochat; related: Value Residual Learning, arXiv:2410.17897).
    """

    def __init__(self, config: LabConfig) -> None:
        super().__init__(config)
        # No padding_idx: if the padding token is the end token, it would never be trained.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = make_positions(config)
        self.dropout = nn.Dropout(config.hidden_dropout) if config.hidden_dropout > 0 else nn.Identity()
        self.layers = nn.ModuleList([make_block(config, index) for index in range(config.num_hidden_layers)])
        self.norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        if config.residual_scalars:
            self.residual_scalars = nn.Parameter(torch.ones(config.num_hidden_layers))
            self.x0_scalars = nn.Parameter(torch.zeros(config.num_hidden_layers))
        if config.value_embeddings:
            assert config.num_key_value_heads is not None
            assert config.head_dim is not None
            width = config.num_key_value_heads * config.head_dim
            having = [index for index in range(config.num_hidden_layers) if has_value_embedding(config, index)]
            self.value_embeddings = nn.ModuleDict({str(i): nn.Embedding(config.vocab_size, width) for i in having})
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Map token ids (batch, length), or their embeddings, to hidden states (batch, length, hidden_size)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if input_ids is None and self.config.value_embeddings:
            raise ValueError("value embeddings require input_ids: they have a vector for each token")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        # The mask is made only from the caller's arguments: a cache created here would disable masking between packed
        # documents, and positions created here would disable the is_causal kernel.
        types, kernel = self.config.layer_types, self.config._attn_implementation
        assert types is not None, "set by LabConfig"
        masks: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(types):
            make = create_causal_mask if kind == FULL else create_sliding_window_causal_mask
            if isinstance(attention_mask, dict):  # with a static cache, `generate` has made the masks already
                mask = attention_mask[kind]
            else:
                mask = make_attention_mask(
                    make,
                    self.config,
                    x,
                    past_key_values,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                )
            masks[kind] = {"attention_mask": mask}
            if isinstance(self.positions, Alibi):
                mask, bias = alibi_mask_and_bias(
                    self.positions, kernel, mask, x, past_key_values, layer_idx=types.index(kind)
                )
                masks[kind] = {"attention_mask": mask, "position_bias": bias}
        rotary = None
        if not isinstance(self.positions, Alibi):
            positions = position_ids
            if positions is None:
                positions = token_positions(x, attention_mask, past_key_values)
            if isinstance(self.positions, Rope):
                rotary = self.positions(positions, x.dtype)
            elif isinstance(self.positions, Learned):
                x = x + self.positions(positions)
            else:
                x = (x * self.config.hidden_size**0.5 + self.positions(positions)).to(x.dtype)
        if use_cache is None:
            # Only for inference: in training, a cache would copy all keys and values.
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        attention_function = find_attention(kernel, eager_attention)
        x = x0 = self.dropout(x)
        for index, layer in enumerate(self.layers):
            if self.config.residual_scalars:
                x = self.residual_scalars[index] * x + self.x0_scalars[index] * x0
            added = {}
            if has_value_embedding(self.config, index):
                added["value_embedding"] = self.value_embeddings[str(index)](input_ids)
            x = layer(
                x,
                attention_function=attention_function,
                rotary=rotary,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **masks[types[index]],
                **added,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)


class LabForCausalLM(LabPreTrainedModel, GenerationMixin):
    """The decoder with a language model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LabConfig) -> None:
        super().__init__(config)
        self.model = LabModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Map token ids (batch, length) to logits (batch, length, vocab_size), with a loss if labels are given."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)  # as in Gemma 2 (arXiv:2408.00118)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class LabForSequenceClassification(GenericForSequenceClassification, LabPreTrainedModel):
    """The decoder with a score at the last token that is not padding: a reward model."""

    def __init__(self, config: LabConfig) -> None:
        LabPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LabModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


def register() -> None:
    """Register the model type with the Auto classes of this process, so that no remote code is needed."""
    AutoConfig.register(LabConfig.model_type, LabConfig, exist_ok=True)
    AutoModel.register(LabConfig, LabModel, exist_ok=True)
    AutoModelForCausalLM.register(LabConfig, LabForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(LabConfig, LabForSequenceClassification, exist_ok=True)


# From here on, save_pretrained also writes these source files, and auto_map into the config.
LabConfig.register_for_auto_class()
LabModel.register_for_auto_class("AutoModel")
LabForCausalLM.register_for_auto_class("AutoModelForCausalLM")
LabForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
