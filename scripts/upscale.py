"""Enlarge a picture: `python scripts/upscale.py --help`."""

import sys

from saccade.run.upscale import main

if __name__ == "__main__":
    sys.exit(main())
