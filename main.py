"""`python main.py` opens the wizard, or takes the commands of `llm-lab`."""

import sys

from llm_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
