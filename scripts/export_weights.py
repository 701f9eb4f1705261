"""Export a finished run's generator, small and loadable by evaluate.py and morph.py: run=<folder> out=<new folder>."""

from saccade.run.export import main

if __name__ == "__main__":
    main()
