"""Copy text: with the system's own tool if there is one, else through the terminal."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys

from .console import printable

SECONDS = 3.0
LONGEST_THROUGH_TERMINAL = 74_994  # bytes; terminals cut or drop a longer OSC 52 sequence
# Each tool, and the environment variable that it needs in order to reach a display.
TOOLS = (
    (("pbcopy",), ""),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
    (("clip.exe",), ""),
)


def copy(text: str) -> str:
    """Copy a text to the clipboard, without control characters; return a description of what was done."""
    text = printable(text)
    many = f"{len(text):,} character{'' if len(text) == 1 else 's'}"
    if tool := _copy_with_tool(text):
        return f"Copied {many} with {tool}."
    data = text.encode()
    if not sys.stdout.isatty():
        return "Not copied: there is no clipboard here."
    if len(data) > LONGEST_THROUGH_TERMINAL:
        return f"Not copied: {many} are too many to send through the terminal, and no clipboard tool was found."
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\a")
    sys.stdout.flush()
    return f"Sent {many} to the terminal's clipboard (OSC 52), which not every terminal accepts."


def _copy_with_tool(text: str) -> str | None:
    """Copy with the first tool that works; return its name. Over ssh, tools would copy on the wrong machine."""
    if os.environ.get("SSH_CONNECTION"):
        return None
    for command, needed in TOOLS:
        if shutil.which(command[0]) and (not needed or os.environ.get(needed)):
            encoding = "utf-16" if command[0] == "clip.exe" else "utf-8"
            nowhere = subprocess.DEVNULL  # not a pipe: some tools keep running, and would keep it open
            try:
                subprocess.run(
                    command, input=text.encode(encoding), stdout=nowhere, stderr=nowhere, check=True, timeout=SECONDS
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return command[0]
    return None
