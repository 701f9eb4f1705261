"""Drawing: image grids, skeletons, error maps, attention pictures, charts. Arrays in, arrays or SVG out."""
