"""Colourise with every attention of PSAL's Tables 4, 5 and 8: `python scripts/colorization_study.py --help`."""

import sys

from saccade.run.colorization_study import main

if __name__ == "__main__":
    sys.exit(main())
