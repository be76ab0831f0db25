"""Everything that prints or asks."""

import os

# A prompt would ask the terminal where its cursor is. Over a slow line the answer comes late and is read as keys, and
# a terminal that never answers costs a second after each question.
os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
