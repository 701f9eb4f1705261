"""What `scripts/bench_attention.py` measures (cases), how (measure), and what it makes of it (verdicts)."""
