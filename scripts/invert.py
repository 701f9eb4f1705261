"""Find the latent vectors behind images, through a GAN's attention: `python scripts/invert.py --help`."""

import sys

from saccade.run.invert import main

if __name__ == "__main__":
    sys.exit(main())
