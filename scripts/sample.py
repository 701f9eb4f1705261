"""Images of a trained generator, as class grids, interpolations or files: `python scripts/sample.py --help`."""

import sys

from saccade.run.sample import main

if __name__ == "__main__":
    sys.exit(main())
