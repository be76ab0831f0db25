"""A tiny model whose tokenizer comes with its own code."""

import json
from pathlib import Path


def write_model_with_code(folder: str | Path, body: str = "") -> None:
    """Write a Llama of one layer; its tokenizer's class is in a file of the folder, after the statements `body`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_lab.hf.tokenizers import make_byte_tokenizer

    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    code = "from transformers import PreTrainedTokenizerFast\n\n\nclass Theirs(PreTrainedTokenizerFast):\n    pass\n"
    Path(folder, "tokenization_theirs.py").write_text(code + body)
    file = Path(folder, "tokenizer_config.json")
    named = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": [None, "tokenization_theirs.Theirs"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
