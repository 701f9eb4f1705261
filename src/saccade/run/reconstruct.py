"""`scripts/reconstruct.py`: rebuild a picture from the pixels of another, by attention alone, without training.

Patches of the picture are the queries, patches of the other the keys, its pixels the values (arXiv 2202.03163, section
4.2): one's own two pictures, or pairs of video frames with the tables and pictures of the paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from saccade.data.edit_files import read_picture
from saccade.run.arguments import run_command
from saccade.run.reconstruct_folder import check_folder, study
from saccade.run.reconstruct_own import rebuild
from saccade.run.reconstruct_pairs import Source, davis_pairs, folder_pairs, own_pictures
from saccade.run.reconstruct_request import USAGE, Request, Sizes, check_methods, parse


def find_source(request: Request) -> Source:
    """The pairs that were asked for.

    Raises:
        ValueError: there are none.
    """
    if request.target is not None and request.reference is not None:
        return own_pictures(request.target, request.reference)
    if request.frames is not None:
        return folder_pairs(request.frames, request.distance, request.pairs)
    return davis_pairs(
        source=request.source,
        data_dir=request.data_dir,
        cache_dir=request.cache_dir,
        split=request.split,
        distance=request.distance,
        count=request.pairs,
    )


def _work(arguments: Sequence[str]) -> list[str]:
    request = parse(arguments)
    if request.threads:
        torch.set_num_threads(request.threads)
    if request.out is None:
        return rebuild(request)
    check_folder(request.out, request.overwrite)
    check_methods(request, None)  # before data are made
    source = find_source(request)
    if None in request.sides:
        first = source.pairs[0]
        check_methods(request, Sizes(*(read_picture(path).size for path in (first.target, first.reference))))
    for notice in source.notices:
        print(f"* {notice}", file=sys.stderr)
    return study(request, source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/reconstruct.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
