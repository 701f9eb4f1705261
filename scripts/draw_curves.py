"""Draw FID and Inception score of runs against steps: `python scripts/draw_curves.py --help`."""

import sys

from saccade.run.curves import main

if __name__ == "__main__":
    sys.exit(main())
