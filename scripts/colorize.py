"""Give a grey picture the colours of a reference: `python scripts/colorize.py --help`."""

import sys

from saccade.run.colorize import main

if __name__ == "__main__":
    sys.exit(main())
