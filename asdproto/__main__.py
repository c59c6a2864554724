"""``python -m asdproto``."""

import sys

from asdproto.cli import main

if __name__ == "__main__":
    sys.exit(main())
