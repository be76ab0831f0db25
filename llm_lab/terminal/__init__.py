"""Everything that prints or asks."""

import os

# A prompt would ask the terminal for the position of its cursor. Over a slow connection the answer comes late and is
# read as keys, and a terminal that never answers costs a second after each question.
os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
