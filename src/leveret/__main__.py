"""`python -m leveret` is `leveret`."""

import sys

from leveret.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
