"""The contents of a model folder, and the code that loads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.estimate.adapter_base import find_base, read_object
from llm_lab.estimate.compatibility import what_loads

from .folder import is_reward_model

NATIVE, OWN_CODE, ADAPTER, GGUF = "native", "own code", "adapter", "gguf"
TRUST = ", trust_remote_code=True"
# The Hub's names for the libraries that load models.
LIBRARIES = {NATIVE: "transformers", OWN_CODE: "transformers", ADAPTER: "peft", GGUF: "gguf"}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, an adapter or a GGUF file.

    config: its config.json, {} if there is none. has_chat_template: whether it takes conversations. base: for an
    adapter, the base in its own config.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    is_reward_model: bool
    has_chat_template: bool
    base: str | None

    @property
    def gguf_files(self) -> list[str]:
        return sorted(file.name for file in self.path.glob("*.gguf"))


def inspect_folder(path: Path) -> ModelFolder:
    """Return a description of a folder's contents, using only its files."""
    config, adapter = (read_object(path / name) or {} for name in ("config.json", "adapter_config.json"))
    tokenizer = read_object(path / "tokenizer_config.json") or {}
    if any(path.glob("*.gguf")):
        kind = GGUF
    elif adapter and not config:
        kind = ADAPTER
    else:
        kind = OWN_CODE if config.get("auto_map") else NATIVE
    has_chat_template = bool(tokenizer.get("chat_template")) or (path / "chat_template.jinja").is_file()
    if kind == GGUF:
        has_chat_template = "tokenizer.chat_template" in _open_gguf(path).fields
    return ModelFolder(
        path, kind, config, is_reward_model(path), has_chat_template, adapter.get("base_model_name_or_path")
    )


def describe_form(folder: ModelFolder) -> str:
    """Describe what the folder is, and what loads it."""
    if folder.kind == ADAPTER:
        return "LoRA adapter (PEFT); needs its base model"
    if folder.kind == GGUF:
        return "GGUF, for llama.cpp and programs based on it"
    return what_loads(folder.config).native_reason if folder.config else ""


def count_parameters(path: Path) -> int | None:
    """Return the number of weights in the folder's GGUF file or safetensors; None if it has neither."""
    if any(path.glob("*.gguf")):
        # The frequency divisors of scaled RoPE are computed, not trained, so they do not count.
        tensors = [tensor for tensor in _open_gguf(path).tensors if tensor.name != "rope_freqs.weight"]
        return sum(int(tensor.n_elements) for tensor in tensors)
    total, files = 0, sorted(path.glob("*.safetensors"))
    for file in files:
        with open(file, "rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for length in tensor["shape"]:
                    count *= length
                total += count
    return total if files else None


def _open_gguf(path: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(next(path.glob("*.gguf")))


def loading_code(folder: ModelFolder, name: str, *, in_transformers: bool = False) -> list[tuple[str, str]]:
    """Return (language, code) pairs that load and run a model.

    name: a folder or a name on the Hub. in_transformers: whether Transformers reads the GGUF file as the same model.
    """
    if folder.kind == GGUF:
        return _gguf_code(folder, name, in_transformers)
    if folder.kind == ADAPTER:
        kind = "SequenceClassification" if folder.is_reward_model else "CausalLM"
        base = find_base(folder.path)  # the base may have moved together with the adapter
        own_code = bool(base and (read_object(Path(base) / "config.json") or {}).get("auto_map"))
        return [("python", _python(f"AutoPeftModelFor{kind}", "peft", name, folder, TRUST if own_code else ""))]
    kind = "AutoModelForSequenceClassification" if folder.is_reward_model else "AutoModelForCausalLM"
    trust = TRUST if folder.kind == OWN_CODE else ""
    return [("python", _python(kind, "transformers", name, folder, trust))]


def _python(loader: str, library: str, name: str, folder: ModelFolder, trust: str) -> str:
    ours = [loader] if library == "transformers" else []
    lines = [f"from {library} import {loader}"] if library != "transformers" else []
    lines += [f"from transformers import {', '.join(sorted([*ours, 'AutoTokenizer']))}", ""]
    # Without this, Transformers asks in the terminal before it loads the tokenizer of a model with custom code.
    tokenizer_trust = trust if folder.kind == OWN_CODE else ""
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)}{tokenizer_trust})"]
    lines += [f"model = {loader}.from_pretrained({json.dumps(name)}{trust})"]
    return "\n".join([*lines, *_use(folder)])


def _use(folder: ModelFolder) -> list[str]:
    if folder.is_reward_model:
        if folder.has_chat_template:
            conversation = '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]'
            return [
                f"messages = {conversation}",
                'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)',
                "print(model(**inputs).logits)",
            ]
        return ['inputs = tokenizer("2 + 2 = 4", return_tensors="pt")', "print(model(**inputs).logits)"]
    if folder.has_chat_template:
        inputs = [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        inputs = ['inputs = tokenizer("Once upon a time", return_tensors="pt")']
    return [
        *inputs,
        "output = model.generate(**inputs, max_new_tokens=50)",
        "print(tokenizer.decode(output[0], skip_special_tokens=True))",
    ]


def _gguf_code(folder: ModelFolder, name: str, in_transformers: bool) -> list[tuple[str, str]]:
    file = folder.gguf_files[0]
    here = name == "."
    where = f"-m {file}" if here else f"-hf {name} --hf-file {file}"
    how = "-cnv" if folder.has_chat_template else '-p "Once upon a time" -no-cnv'
    opened = (
        f"Llama({json.dumps(file)})"
        if here
        else f"Llama.from_pretrained({json.dumps(name)}, filename={json.dumps(file)})"
    )
    if folder.has_chat_template:
        ask = 'llm.create_chat_completion([{"role": "user", "content": "Hello!"}], max_tokens=50)'
    else:
        ask = 'llm("Once upon a time", max_tokens=50)'
    code = [
        ("bash", f"llama-cli {where} {how}"),
        ("python", f"from llama_cpp import Llama\n\nllm = {opened}\nprint({ask})"),
    ]
    if in_transformers:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)}, gguf_file={json.dumps(file)})",
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(name)}, gguf_file={json.dumps(file)})",
            *_use(folder),
        ]
        code.append(("python", "\n".join(lines)))
    return code
