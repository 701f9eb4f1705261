"""Rebuild a picture from the pixels of another by attention: `python scripts/reconstruct.py --help`."""

import sys

from saccade.run.reconstruct import main

if __name__ == "__main__":
    sys.exit(main())
