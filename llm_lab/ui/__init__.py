"""All that prints or asks."""

import os

# A prompt would ask the terminal where its cursor is; over a slow line the answer comes late and is read as keys,
# and a terminal that never answers costs two seconds and a warning for each question.
os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
