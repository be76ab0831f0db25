"""The model library: popular models that fit on one GPU, with their facts. No torch, no network.

Sizes come from each model's config.json. The number of parameters is the published one, except for Qwen3.5: its
published number includes the image encoder, and here only the text model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .parameters import ModelShape, guess_shape, shape_of_config

TEXT_ONLY = "also reads images, which are not used here"
HYBRID = "three of four layers have linear attention"


@dataclass(frozen=True)
class LibraryModel:
    """A model on the Hugging Face Hub.

    gated: whether its owner requires accepting terms before the download; None if that is not certain. is_chat: whether
    it is trained to answer, with a chat template. parameters: their number in the loaded model. context: the longest
    input, in tokens. shape: its dimensions, for estimates. note: other facts for users, or "".
    """

    name: str
    family: str
    license: str
    gated: bool | None
    is_chat: bool
    parameters: int
    context: int
    shape: ModelShape
    note: str = ""


def _qwen3(hidden: int, layers: int, heads: int, inner: int, tied: bool) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
    return {"model_type": "qwen3", "hidden_act": "silu", "tie_word_embeddings": tied, **sizes}


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "num_key_value_heads": kv_heads, "vocab_size": 151_936}
    return {"model_type": "qwen2", "hidden_act": "silu", "tie_word_embeddings": True, **sizes}


def _qwen3_5(hidden: int, layers: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "num_key_value_heads": kv_heads, "head_dim": 256, "vocab_size": 248_320}
    return {"model_type": "qwen3_5_text", "hidden_act": "silu", "tie_word_embeddings": True, **sizes}


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "num_key_value_heads": kv_heads}
    return {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True, **sizes, **more}


def _gemma3(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab_size: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "num_key_value_heads": kv_heads, "head_dim": 256, "vocab_size": vocab_size}
    return {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, **sizes}


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": 50_257}
    return {"model_type": "gpt2", "activation_function": "gelu_new", **sizes}


_LLAMA_3, _SMOLLM2 = {"vocab_size": 128_256}, {"vocab_size": 49_152}
# Configs and numbers of parameters, one for each architecture and size.
CONFIGS: dict[str, tuple[Mapping[str, Any], int]] = {
    "Qwen2.5-0.5B": (_qwen2(896, 24, 14, 2, 4864), 494_032_768),
    "Qwen2.5-1.5B": (_qwen2(1536, 28, 12, 2, 8960), 1_543_714_304),
    "Qwen3-0.6B": (_qwen3(1024, 28, 16, 3072, True), 596_049_920),
    "Qwen3-1.7B": (_qwen3(2048, 28, 16, 6144, True), 1_720_574_976),
    "Qwen3-4B": (_qwen3(2560, 36, 32, 9728, True), 4_022_468_096),
    "Qwen3-8B": (_qwen3(4096, 36, 32, 12_288, False), 8_190_735_360),
    "Qwen3.5-0.8B": (_qwen3_5(1024, 24, 8, 2, 3584), 752_393_024),
    "Qwen3.5-2B": (_qwen3_5(2048, 24, 8, 2, 6144), 1_881_825_088),
    "Qwen3.5-4B": (_qwen3_5(2560, 32, 16, 4, 9216), 4_205_751_296),
    "Llama-3.2-1B": (_llama(2048, 16, 32, 8, 8192, **_LLAMA_3), 1_235_814_400),
    "Llama-3.2-3B": (_llama(3072, 28, 24, 8, 8192, **_LLAMA_3), 3_212_749_824),
    "Llama-3.1-8B": (_llama(4096, 32, 32, 8, 14_336, **_LLAMA_3, tie_word_embeddings=False), 8_030_261_248),
    "Gemma-3-270M": (_gemma3(640, 18, 4, 1, 2048, 262_144), 268_098_176),
    "Gemma-3-1B": (_gemma3(1152, 26, 4, 1, 6912, 262_144), 999_885_952),
    "Gemma-3-4B": (_gemma3(2560, 34, 8, 4, 10_240, 262_208), 4_300_079_472),
    "SmolLM2-135M": (_llama(576, 30, 9, 3, 1536, **_SMOLLM2), 134_515_008),
    "SmolLM2-360M": (_llama(960, 32, 15, 5, 2560, **_SMOLLM2), 361_821_120),
    "SmolLM2-1.7B": (_llama(2048, 24, 32, 32, 8192, **_SMOLLM2), 1_711_376_384),
    "SmolLM3-3B": (_llama(2048, 36, 16, 4, 11_008, **_LLAMA_3, model_type="smollm3"), 3_075_098_624),
    "Phi-3-mini": (
        _llama(3072, 32, 32, 32, 8192, vocab_size=32_064, model_type="phi3", tie_word_embeddings=False),
        3_821_079_552,
    ),
    "Phi-4-mini": (_llama(3072, 32, 24, 8, 8192, vocab_size=200_064, model_type="phi3"), 3_836_021_760),
    "Mistral-7B": (
        _llama(4096, 32, 32, 8, 14_336, vocab_size=32_768, model_type="mistral", tie_word_embeddings=False),
        7_248_023_552,
    ),
    "OLMo-2-1B": (
        _llama(2048, 16, 16, 16, 8192, vocab_size=100_352, model_type="olmo2", tie_word_embeddings=False),
        1_484_916_736,
    ),
    "GPT-2": (_gpt2(768, 12, 12), 124_439_808),
    "GPT-2-medium": (_gpt2(1024, 24, 16), 354_823_168),
}


def _models() -> Iterator[LibraryModel]:
    def of(family: str, license: str, gated: bool | None, note: str = "") -> Any:
        def model(config: str, name: str, context: int, *, chat: bool = False, about: str = note) -> LibraryModel:
            parameters = CONFIGS[config][1]
            return LibraryModel(name, family, license, gated, chat, parameters, context, _shape(config), about)

        return model

    qwen = of("Qwen3", "apache-2.0", False)
    thinks = "thinks before it answers; can be switched off"
    for size in ("0.6B", "1.7B", "4B", "8B"):
        yield qwen(f"Qwen3-{size}", f"Qwen/Qwen3-{size}-Base", 32_768)
        yield qwen(f"Qwen3-{size}", f"Qwen/Qwen3-{size}", 40_960, chat=True, about=thinks)
        if size == "4B":
            yield qwen("Qwen3-4B", "Qwen/Qwen3-4B-Instruct-2507", 262_144, chat=True)
    qwen = of("Qwen2.5", "apache-2.0", False)
    for size in ("0.5B", "1.5B"):
        yield qwen(f"Qwen2.5-{size}", f"Qwen/Qwen2.5-{size}", 32_768)
        yield qwen(f"Qwen2.5-{size}", f"Qwen/Qwen2.5-{size}-Instruct", 32_768, chat=True)
    qwen = of("Qwen3.5", "apache-2.0", False, f"{TEXT_ONLY}; {HYBRID}")
    for size in ("0.8B", "2B", "4B"):
        yield qwen(f"Qwen3.5-{size}", f"Qwen/Qwen3.5-{size}-Base", 262_144)
        yield qwen(f"Qwen3.5-{size}", f"Qwen/Qwen3.5-{size}", 262_144, chat=True)
    for version, sizes in (("3.2", ("1B", "3B")), ("3.1", ("8B",))):
        llama = of(f"Llama {version}", f"llama{version}", True)
        for size in sizes:
            yield llama(f"Llama-{version}-{size}", f"meta-llama/Llama-{version}-{size}", 131_072)
            yield llama(f"Llama-{version}-{size}", f"meta-llama/Llama-{version}-{size}-Instruct", 131_072, chat=True)
    gemma = of("Gemma 3", "gemma", True)
    yield gemma("Gemma-3-270M", "google/gemma-3-270m", 32_768)
    yield gemma("Gemma-3-270M", "google/gemma-3-270m-it", 32_768, chat=True)
    yield gemma("Gemma-3-1B", "google/gemma-3-1b-pt", 32_768)
    yield gemma("Gemma-3-1B", "google/gemma-3-1b-it", 32_768, chat=True)
    yield gemma("Gemma-3-4B", "google/gemma-3-4b-pt", 131_072, about=TEXT_ONLY)
    yield gemma("Gemma-3-4B", "google/gemma-3-4b-it", 131_072, chat=True, about=TEXT_ONLY)
    smol = of("SmolLM2", "apache-2.0", False)
    for size in ("135M", "360M", "1.7B"):
        yield smol(f"SmolLM2-{size}", f"HuggingFaceTB/SmolLM2-{size}", 8192)
        yield smol(f"SmolLM2-{size}", f"HuggingFaceTB/SmolLM2-{size}-Instruct", 8192, chat=True)
    smol = of("SmolLM3", "apache-2.0", False)
    yield smol("SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B-Base", 65_536)
    yield smol("SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B", 65_536, chat=True, about=thinks)
    phi = of("Phi", "mit", False)
    yield phi("Phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", 4096, chat=True)
    yield phi("Phi-4-mini", "microsoft/Phi-4-mini-instruct", 131_072, chat=True)
    mistral = of("Mistral", "apache-2.0", None, "its owner may ask to accept terms before the download")
    yield mistral("Mistral-7B", "mistralai/Mistral-7B-v0.3", 32_768)
    yield mistral("Mistral-7B", "mistralai/Mistral-7B-Instruct-v0.3", 32_768, chat=True)
    olmo = of("OLMo 2", "apache-2.0", False)
    yield olmo("OLMo-2-1B", "allenai/OLMo-2-0425-1B", 4096)
    yield olmo("OLMo-2-1B", "allenai/OLMo-2-0425-1B-SFT", 4096, chat=True)
    yield olmo("OLMo-2-1B", "allenai/OLMo-2-0425-1B-Instruct", 4096, chat=True)
    gpt2 = of("GPT-2", "mit", False)
    yield gpt2("GPT-2", "openai-community/gpt2", 1024)
    yield gpt2("GPT-2-medium", "openai-community/gpt2-medium", 1024)


def _shape(config: str) -> ModelShape:
    """Return the dimensions of a model, with its exact number of parameters."""
    values, parameters = CONFIGS[config]
    shape = shape_of_config(values) or guess_shape(values)
    assert shape is not None
    return replace(shape, other_parameters=parameters - shape.parameters)


MODELS: tuple[LibraryModel, ...] = tuple(_models())
# Short names, which the Hub redirects to the full ones.
_ALIASES = {name.partition("/")[2]: name for name in ("openai-community/gpt2", "openai-community/gpt2-medium")}
_BY_NAME = {model.name: model for model in MODELS}


def find_in_library(name: str) -> LibraryModel | None:
    """Return the model of the library that has this name on the Hub, or None."""
    return _BY_NAME.get(_ALIASES.get(name, name))
