"""Metrics over two processes equal those of one, with images that a sampler repeats."""

import socket
import sys

import pytest
import torch
import torch.multiprocessing as mp

from saccade.metrics.pairs import PROXY, ImagePairMetrics


def images(index):
    generator = torch.Generator().manual_seed(index)
    target = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    return target * 0.7, target


def score(indices):
    metrics = ImagePairMetrics(32, ["ssim_gaussian", "l1", PROXY])
    for index in indices:
        metrics.update(*images(index), keys=[f"image{index}"])
    return metrics.compute()


def one_process(rank, port, results):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results[rank] = score(range(rank, 10, 2))
    # an odd list, filled up by repeating image 0
    metrics = ImagePairMetrics(32, ["l1"])
    for index in ([0, 2, 4], [1, 3, 0])[rank]:
        metrics.update(*images(index), keys=[f"image{index}"])
    results[f"repeated{rank}"] = (metrics.compute(), sorted(row["key"] for row in metrics.per_image()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over tcp as set up here")
def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(one_process, (port, results), nprocs=2)
    alone = score(range(10))
    assert results[0] == pytest.approx(alone, rel=1e-6)
    assert results[1] == pytest.approx(alone, rel=1e-6)
    metrics = ImagePairMetrics(32, ["l1"])
    for index in range(5):
        metrics.update(*images(index))
    for rank in (0, 1):
        values, keys = results[f"repeated{rank}"]
        assert values == pytest.approx(metrics.compute(), rel=1e-12)
        assert keys == [f"image{index}" for index in range(5)]
