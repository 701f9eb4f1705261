"""Fill the holes of a picture: `python scripts/inpaint.py --help`."""

import sys

from saccade.run.inpaint import main

if __name__ == "__main__":
    sys.exit(main())
