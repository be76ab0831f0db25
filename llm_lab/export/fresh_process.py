"""Load exported models in a process where LLM Lab can't be imported; verify.py runs this source.

Reads a list of jobs (JSON) from the file in the first argument, and writes the results into the file in the second;
logits go into .npy files.
"""

import gc
import json
import sys
from typing import Any


class _BlockLab:
    """Blocks the import of LLM Lab, which would supply code that is missing in an exported folder."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "llm_lab":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main() -> None:
    gc.disable()  # imported objects stay alive, and checking them would take a fifth of this process's time
    sys.meta_path.insert(0, _BlockLab())
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    results = [_run(job) for job in jobs]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(results, file)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return (_in_llama_cpp if job["loader"] == "llama.cpp" else _in_transformers)(job)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _in_transformers(job: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    where = {"gguf_file": job["file"]} if job["file"] else {"trust_remote_code": job["trust_remote_code"]}
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32, **where).eval()
    model.generation_config = GenerationConfig()  # greedy, whatever the model's own config says
    rows = [torch.tensor([row]) for row in job["rows"]]
    with torch.inference_mode():
        logits = torch.cat([model(input_ids=row, use_cache=False).logits[0].float() for row in rows])
        numpy.save(job["logits"], logits.numpy())
        length = job["new_tokens"]
        written = [
            model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
                max_new_tokens=length, pad_token_id=0,
            )[0, len(prompt) :].tolist()
            for prompt in job["prompts"]
        ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], **where)
    texts = [tokenizer(text)["input_ids"] for text in job["texts"]]
    return {
        "loaded_as": type(model).__name__,
        "version": transformers.__version__,
        "module": type(model).__module__,
        "written": written,
        "texts": texts,
        "decoded": [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in texts],
        "chat": tokenizer.apply_chat_template(job["chat"], tokenize=False, add_generation_prompt=True)
        if job["chat"]
        else None,
    }


def _in_llama_cpp(job: dict[str, Any]) -> dict[str, Any]:
    import os

    import llama_cpp
    import numpy

    path = os.path.join(job["folder"], job["file"])
    length = max(map(len, job["rows"])) + job["new_tokens"]
    model = llama_cpp.Llama(
        path, n_ctx=length, n_batch=length, n_ubatch=length, logits_all=True, verbose=False, n_threads=job["threads"],
        n_gpu_layers=0, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    logits, written = [], []
    for row in job["rows"]:
        model.reset()
        model.eval(row)
        logits.append(numpy.array(model.scores[: len(row)]))
    numpy.save(job["logits"], numpy.concatenate(logits))
    for prompt in job["prompts"]:
        model.reset()
        tokens = list(prompt)
        for _ in range(job["new_tokens"]):
            model.eval(tokens[model.n_tokens :])
            tokens.append(int(numpy.argmax(model.scores[model.n_tokens - 1])))
        written.append(tokens[len(prompt) :])
    texts = [model.tokenize(text.encode(), add_bos=True, special=True) for text in job["texts"]]
    return {
        "loaded_as": f"{model.metadata['general.architecture']} with its cache in f32",
        "written": written,
        "texts": texts,
        "decoded": [_detokenize(model, row) for row in texts],
        "chat": _render_chat(model, job["chat"]) if job["chat"] else None,
    }


def _detokenize(model: Any, row: list[int]) -> str:
    """Decode tokens; llama-cpp-python's own detokenize drops tokens of more than 32 bytes."""
    import ctypes

    import llama_cpp

    buffer = (ctypes.c_char * 65536)()
    text = b""
    for token in row:
        length = llama_cpp.llama_token_to_piece(model._model.vocab, token, buffer, len(buffer), 0, True)
        text += buffer.raw[:length]
    # SentencePiece puts a space before the first word, which transformers removes when decoding.
    is_sentencepiece = llama_cpp.llama_vocab_type(model._model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_SPM
    return (text.removeprefix(b" ") if is_sentencepiece else text).decode(errors="replace")


def _render_chat(model: Any, messages: list[dict[str, str]]) -> str | None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    names = [
        model._model.token_get_text(token) if token >= 0 else "" for token in (model.token_eos(), model.token_bos())
    ]
    template = model.metadata.get("tokenizer.chat_template")
    if not template:
        return ""
    try:
        return Jinja2ChatFormatter(template, *names)(messages=messages).prompt
    except Exception:  # llama-cpp-python's Jinja lacks functions of some templates; llama.cpp itself has its own
        return None


if __name__ == "__main__":
    main()
