#!/usr/bin/env python3
"""List, fetch and verify the pretrained weight files that losses and metrics use.

    python scripts/fetch_weights.py --list
    python scripts/fetch_weights.py vgg19 inception_tf --to /data/weights
    python scripts/fetch_weights.py                       # all of them

Without --to, files go to $SACCADE_WEIGHTS if it is set, else to torch hub's cache. On a machine without network: run
this where there is one and copy the folder, then set runtime.weights_dir or SACCADE_WEIGHTS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from saccade import weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 1 if a file could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which files: {', '.join(weights.KNOWN)} (default: all)")
    parser.add_argument("--to", metavar="FOLDER", help="folder to look in first and to write to")
    parser.add_argument("--list", action="store_true", help="say what is here and what is missing; fetch nothing")
    options = parser.parse_args(arguments)
    try:
        names = [weights.known(name).name for name in options.names or weights.KNOWN]
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for row in weights.status(options.to):
            if row["name"] in names:
                print(f"{row['state']:8} {row['name']:22} {row['megabytes']:4} MB  {row['where'] or row['url']}")
        return 0
    failed = 0
    for name in names:
        try:
            found = weights.find(name, options.to)
            print(f"ok       {name:22} {found.path}  sha256 {found.sha256}")
        except weights.WeightsError as error:
            failed += 1
            print(f"missing  {name:22} {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
