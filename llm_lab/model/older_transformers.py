"""What transformers 4.57 does differently from version 5, so that a folder with this code loads in both."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IS_OLDER = int(transformers.__version__.partition(".")[0]) < 5

if not IS_OLDER:
    from transformers import PreTrainedConfig
    from transformers import initialization as init
    from transformers.utils.output_capturing import capture_outputs
else:
    try:
        from torch.nn import init
        from transformers import PretrainedConfig
        from transformers.utils.generic import check_model_inputs as capture_outputs
    except ImportError as error:
        why = "this model's own code requires transformers 4.57 or newer: pip install -U 'transformers>=4.57'"
        raise ImportError(why) from error

    class PreTrainedConfig(PretrainedConfig):  # type: ignore[no-redef]
        """A config whose annotated attributes are its fields, completed by `__post_init__`, as in version 5."""

        def __init__(self, **kwargs: Any) -> None:
            for name in self._fields():
                setattr(self, name, kwargs.pop(name, getattr(type(self), name)))
            self.__post_init__(**kwargs)

        def __post_init__(self, **kwargs: Any) -> None:
            fields = {name: getattr(self, name) for name in self._fields()}
            rope, theta = fields.get("rope_parameters"), kwargs.pop("rope_theta", None)
            super().__init__(**kwargs)
            for name, value in fields.items():
                setattr(self, name, value)
            if rope is not None:
                rope.setdefault("rope_theta", theta or 10000.0)
                if rope.get("rope_type") == "yarn":
                    rope.setdefault("original_max_position_embeddings", self.max_position_embeddings)

        @classmethod
        def _fields(cls) -> list[str]:
            own = [kind for kind in reversed(cls.__mro__) if issubclass(kind, PreTrainedConfig)]
            return [name for kind in own for name in inspect.get_annotations(kind)]


__all__ = ["PreTrainedConfig", "capture_outputs", "find_attention", "init", "make_attention_mask", "mask_sizes"]


def find_attention(kernel: str, default: Callable) -> Callable:
    """Return the attention function of a kernel that the model was built with."""
    if IS_OLDER:
        return ALL_ATTENTION_FUNCTIONS.get(kernel, default)
    return ALL_ATTENTION_FUNCTIONS.get_interface(kernel, default)


def make_attention_mask(
    make: Callable[..., Any], config: Any, inputs_embeds: torch.Tensor, past_key_values: Cache | None, **given: Any
) -> Any:
    """Call one of transformers' functions that make masks; version 4.57 also requires positions in the cache."""
    if not IS_OLDER:
        return make(config=config, inputs_embeds=inputs_embeds, past_key_values=past_key_values, **given)
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past
    return make(
        config=config, input_embeds=inputs_embeds, past_key_values=past_key_values, cache_position=positions, **given
    )


def mask_sizes(cache: Cache, length: int, layer_idx: int) -> tuple[int, int]:
    """Return how many keys a layer attends to, and the position of the first; version 4.57 requires positions."""
    queries: Any = torch.arange(length) if IS_OLDER else length
    return cache.get_mask_sizes(queries, layer_idx)
