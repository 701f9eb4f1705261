"""Released checkpoints of the editing networks as run folders: `python scripts/import_editing.py --help`."""

import sys

from saccade.run.import_editing import main

if __name__ == "__main__":
    sys.exit(main())
