"""``python -m asdproto``."""

import sys

from asdproto.cli import main

# Worker processes import this module again; they must not start another command.
if __name__ == "__main__":
    sys.exit(main())
