"""Start the web server on this machine and print its link."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from typing import Any

from llm_lab.errors import DONE, Problem, UserError

from .guard import TOKEN
from .launches import state_folder

HOST = "127.0.0.1"
PORT = 7750
TRIED = 20  # ports to try after the first, if that one is taken


def serve(port: int | None = None, *, say: Callable[[str], Any]) -> int:
    """Serve until Ctrl-C. port: None takes the first free one from 7750 on; 0 takes any. UserError if it is taken.

    say: prints a line for the user.
    """
    import uvicorn

    from .app import make_app

    listening = _listen(port)
    number = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    app = make_app(port=number, token=token, session=_session_key(number))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
        ws="none",
    )
    say(f"LLM Lab runs at http://{HOST}:{number}/?{TOKEN}={token}")
    say("Only this machine can open it. Ctrl-C closes it; runs continue.")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        say("\nClosed. Runs continue.")
    return DONE


def _listen(port: int | None) -> socket.socket:
    """Open the socket of a port."""
    for number in [port] if port is not None else [*range(PORT, PORT + TRIED), 0]:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, number))
            listening.listen(128)
        except (OSError, OverflowError) as error:
            listening.close()
            if port is not None:
                why = getattr(error, "strerror", None) or "not a port"
                fix = "Choose another one, or leave --port out."
                raise UserError(Problem("--port", why, value=port, allowed="0 to 65535", fix=fix)) from None
        else:
            return listening
    raise UserError(Problem("--port", "no port is free"))


def _session_key(port: int) -> str:
    """Return the cookie's value for a port, stored in a file that only the user can read.

    So open pages keep working when the server is restarted on the same port.
    """
    file = state_folder() / f"session-{port}"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if len(known := file.read_text(encoding="ascii").strip()) >= 32:
            return known
        file.unlink()
        return _session_key(port)
    key = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(key)
    return key
