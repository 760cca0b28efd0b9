"""``python -m xnatfs`` and the ``xnatfs`` command. The work is in ``cli/main.py``."""

from __future__ import annotations

import sys

from xnatfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
