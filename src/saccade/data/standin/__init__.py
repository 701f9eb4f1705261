"""Generators of files in the layout of a dataset that cannot be redistributed."""
