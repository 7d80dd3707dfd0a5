"""`python -m backflip`: the command line without its script."""

import sys

from backflip.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
