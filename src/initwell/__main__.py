"""``python -m initwell`` is the ``initwell`` command."""

import sys

from initwell.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
