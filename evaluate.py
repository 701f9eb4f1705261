"""Evaluate a finished run (`run=<folder>`), or somebody's images (`images=<dir> reference=<dir>`)."""

from saccade.run.evaluate import main

if __name__ == "__main__":
    main()
