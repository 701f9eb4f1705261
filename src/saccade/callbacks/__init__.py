"""Lightning callbacks that watch a run: memory, image grids, attention pictures, progress. None of them changes it."""
