"""Chat with the model in model/, as a Hugging Face Space. Run it here with: python app.py"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import gradio as gr
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

FOLDER = Path(__file__).resolve().parent / "model"
FACTS = json.loads((FOLDER.parent / "space.json").read_text(encoding="utf-8"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# If own_code is set, this runs the code in model/, which comes with this Space.
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=FACTS["own_code"])
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=FACTS["own_code"], dtype="auto")
model = model.to(DEVICE).eval()


class StopWhenSet(StoppingCriteria):
    """Ends a generation once an event is set."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def text_of(content: Any) -> str:
    """Return the text of a message, whose parts Gradio may keep in a list."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def prompt_ids(messages: list[dict[str, str]], room: int) -> list[int]:
    """Return the tokens of a conversation; what does not fit is left out, the oldest turns first."""
    turns = [message for message in messages if message["role"] != "system"]
    system = [message for message in messages if message["role"] == "system"]
    while True:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template([*system, *turns], add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:  # a base model continues the text
            ids = tokenizer("".join(message["content"] for message in turns))["input_ids"]
        if len(ids) <= room or len(turns) <= 2:
            return ids[-room:]
        turns = turns[2:]


def respond(
    message: str,
    history: list[dict[str, Any]],
    system: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.95,
) -> Iterator[str]:
    """Yield the answer as it grows. Closing the iterator, as the stop button does, ends the generation."""
    messages = [{"role": "system", "content": system}] if system and tokenizer.chat_template else []
    messages += [{"role": turn["role"], "content": text_of(turn["content"])} for turn in history]
    messages.append({"role": "user", "content": message})
    context = FACTS["context"] or 2048
    new_tokens = max(1, min(int(max_new_tokens), context // 2))
    ids = torch.tensor([prompt_ids(messages, context - new_tokens)], device=DEVICE)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, failed = Event(), []

    def generate() -> None:
        try:
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([StopWhenSet(stop)]),
                **sampling,
            )
        except Exception as error:
            failed.append(error)
        finally:
            streamer.end()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text
    finally:
        stop.set()
        thread.join()
    if failed:
        raise gr.Error(f"The model could not answer: {failed[0]}")


demo = gr.ChatInterface(
    respond,
    title=FACTS["title"],
    description=FACTS["description"],
    additional_inputs=[
        gr.Textbox("", label="System prompt"),
        gr.Slider(1, 1024, value=256, step=1, label="Maximum length of an answer, in tokens"),
        gr.Slider(0.0, 2.0, value=0.8, step=0.05, label="Temperature (0: always the most likely token)"),
        gr.Slider(0.05, 1.0, value=0.95, step=0.05, label="Top p"),
    ],
)

if __name__ == "__main__":
    demo.launch()
