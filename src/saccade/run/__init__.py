"""Runs: configuration, identity, folder, record, training and evaluation. Hydra and W&B live here and nowhere below."""
