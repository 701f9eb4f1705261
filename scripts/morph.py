"""Repaint the person of your own picture in another pose: `python scripts/morph.py --help`."""

import sys

from saccade.run.morph import main

if __name__ == "__main__":
    sys.exit(main())
