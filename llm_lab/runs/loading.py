"""How a folder of a model is loaded: which kind it is, and the lines of code that others need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.estimate.compatibility import what_loads

from .folder import is_judge

NATIVE, OWN_CODE, ADAPTER, GGUF = "native", "own code", "adapter", "gguf"
TRUST = ", trust_remote_code=True"
# The Hub's own names of what loads them.
LIBRARIES = {NATIVE: "transformers", OWN_CODE: "transformers", ADAPTER: "peft", GGUF: "gguf"}


@dataclass(frozen=True)
class ModelFolder:
    """What lies in a folder that others load. config: its config.json, {} where there is none."""

    path: Path
    kind: str
    config: dict[str, Any]
    judges: bool
    chats: bool
    base: str | None  # of an adapter, as its own config names it

    @property
    def gguf_files(self) -> list[str]:
        return sorted(file.name for file in self.path.glob("*.gguf"))


def look_at_folder(path: Path) -> ModelFolder:
    """Tell what a folder holds by its files."""
    config, adapter = _read(path / "config.json"), _read(path / "adapter_config.json")
    tokenizer = _read(path / "tokenizer_config.json")
    if any(path.glob("*.gguf")):
        kind = GGUF
    elif adapter and not config:
        kind = ADAPTER
    else:
        kind = OWN_CODE if config.get("auto_map") else NATIVE
    chats = bool(tokenizer.get("chat_template")) or (path / "chat_template.jinja").is_file()
    if kind == GGUF:
        chats = "tokenizer.chat_template" in _open_gguf(path).fields
    return ModelFolder(path, kind, config, is_judge(path), chats, adapter.get("base_model_name_or_path"))


def describe_form(folder: ModelFolder) -> str:
    """Return in words what loads the folder."""
    if folder.kind == ADAPTER:
        return "a LoRA adapter, for PEFT: it goes onto its base"
    if folder.kind == GGUF:
        return "a GGUF file, for llama.cpp and what is built on it"
    return what_loads(folder.config).native_reason if folder.config else ""


def count_parameters(path: Path) -> int | None:
    """Return how many numbers the folder's GGUF file or safetensors hold, by their headers; None without either."""
    if any(path.glob("*.gguf")):
        # What divides the frequencies of stretched positions is computed, not learnt.
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
    """Return (language, code) of what loads it. name: where it is: a folder, or a name on the Hub.

    in_transformers: of GGUF, whether Transformers reads this file as the same model.
    """
    if folder.kind == GGUF:
        return _gguf_code(folder, name, in_transformers)
    if folder.kind == ADAPTER:
        kind = "SequenceClassification" if folder.judges else "CausalLM"
        own_code = bool(folder.base and _read(Path(folder.base).expanduser() / "config.json").get("auto_map"))
        return [("python", _python(f"AutoPeftModelFor{kind}", "peft", name, folder, TRUST if own_code else ""))]
    kind = "AutoModelForSequenceClassification" if folder.judges else "AutoModelForCausalLM"
    trust = TRUST if folder.kind == OWN_CODE else ""
    return [("python", _python(kind, "transformers", name, folder, trust))]


def _python(loader: str, library: str, name: str, folder: ModelFolder, trust: str) -> str:
    ours = [loader] if library == "transformers" else []
    lines = [f"from {library} import {loader}"] if library != "transformers" else []
    lines += [f"from transformers import {', '.join(sorted([*ours, 'AutoTokenizer']))}", ""]
    # Without the word, the library asks on the terminal before it reads the tokenizer of a model with its own code.
    told = trust if folder.kind == OWN_CODE else ""
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)}{told})"]
    lines += [f"model = {loader}.from_pretrained({json.dumps(name)}{trust})"]
    return "\n".join([*lines, *_use(folder)])


def _use(folder: ModelFolder) -> list[str]:
    if folder.judges:
        if folder.chats:
            talk = '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]'
            return [
                f"talk = {talk}",
                'inputs = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)',
                "print(model(**inputs).logits)",
            ]
        return ['inputs = tokenizer("2 + 2 = 4", return_tensors="pt")', "print(model(**inputs).logits)"]
    if folder.chats:
        inputs = [
            'talk = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    talk, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        inputs = ['inputs = tokenizer("Once upon a time", return_tensors="pt")']
    return [
        *inputs,
        "written = model.generate(**inputs, max_new_tokens=50)",
        "print(tokenizer.decode(written[0], skip_special_tokens=True))",
    ]


def _gguf_code(folder: ModelFolder, name: str, in_transformers: bool) -> list[tuple[str, str]]:
    file = folder.gguf_files[0]
    here = name == "."
    where = f"-m {file}" if here else f"-hf {name} --hf-file {file}"
    how = "-cnv" if folder.chats else '-p "Once upon a time" -no-cnv'
    opened = (
        f"Llama({json.dumps(file)})"
        if here
        else f"Llama.from_pretrained({json.dumps(name)}, filename={json.dumps(file)})"
    )
    if folder.chats:
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


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
