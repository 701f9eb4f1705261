"""Datasets: one loader each, their stand-ins, and the typed batches that tasks receive."""
