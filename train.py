"""Train (or resume, or skip) one run: `python train.py model=posemorph attention=gpa`. Sweeps: `-m seed=0,1`."""

from saccade.run.main import main

if __name__ == "__main__":
    main()
