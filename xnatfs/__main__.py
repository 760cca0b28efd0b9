"""``python -m xnatfs`` and the ``xnatfs`` command. The work is in ``cli/main.py``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; Ctrl-C while its modules are loaded is the end of it like any later one."""
    try:
        from xnatfs.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
