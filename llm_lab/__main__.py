"""`python -m llm_lab` is `llm-lab`."""

import sys

from llm_lab.cli import main

sys.exit(main())
