"""Chat sessions on tiny random models, and the chat screen driven by typed keys."""

from typing import Any

import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from llm_lab.chat.session import ChatSession, ChatSettings
from llm_lab.errors import Problem, UserError
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.terminal.chat_screen import run_chat

END = 256
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": END,
    "bos_token_id": END,
}
GREEDY = ChatSettings(temperature=0, max_new_tokens=24)


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "max_position_embeddings": 256, **options}))


def mistral():
    return MistralForCausalLM(MistralConfig(**SHAPE, max_position_embeddings=256, sliding_window=12))


def lab(**options):
    return LabForCausalLM(LabConfig(**SHAPE, max_position_embeddings=256, **options))


def loud(model):
    """Make random weights large enough that the top token differs from step to step."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


def chat_tokenizer():
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def open_session(model=None, *, chat=False, settings=GREEDY, name="tiny"):
    tokenizer = chat_tokenizer() if chat else make_byte_tokenizer()
    return ChatSession(model or loud(llama()), tokenizer, name=name, settings=settings)


def say(session, text):
    return "".join(session.reply(text))


def no_checkpoint(path):
    raise UserError(Problem(path, "there is no such run or model"))


def type_into_chat(session: Any, keys: str, load: Any = no_checkpoint, side_by_side: Any = None) -> None:
    """Run the chat screen with the keys that a user types."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        run_chat(session, load=load, side_by_side=lambda: side_by_side, interactive=True)
