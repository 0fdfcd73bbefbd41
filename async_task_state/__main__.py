"""`python -m async_task_state`: the command line."""

import sys

from async_task_state.cli import main

if __name__ == "__main__":
    sys.exit(main())
