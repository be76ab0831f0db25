"""Drive the chat screen by keys."""

from llm_lab.errors import Problem, UserError
from llm_lab.terminal.chat_screen import run_chat


def no_other(path):
    raise UserError(Problem(path, "there is no such checkpoint"))


def typed(session, keys, load=no_other, beside=None):
    """Drive the screen by what a person types."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        run_chat(session, load=load, beside=beside, interactive=True)
