import pytest
import torch
from tiny_task import Network, TinyTask, fit

from saccade.attention.block import AttentionBlock
from saccade.attention.full import FullAttention
from saccade.attention.gpa import GridPartitionedAttention
from saccade.callbacks import memory
from saccade.callbacks.allocation import METHOD
from saccade.callbacks.memory import MemoryRecord, held_bytes, measure_attention_blocks
from saccade.geometry import Size, SlotSpec

MIB = 2**20


def block(rows, mixer, channels=8):
    spec = SlotSpec(f"up.{rows}", channels, channels, channels, Size(rows, rows), Size(rows, rows))
    return AttentionBlock(spec, mixer(spec))


def test_the_papers_measure_grows_with_the_map_and_gpa_needs_less_than_the_full_matrix():
    full = block(32, lambda spec: FullAttention(spec, kernel="reference"))
    gpa = block(32, lambda spec: GridPartitionedAttention(spec, coarse=8, cells=8, keys_per_cell=2))
    measured = measure_attention_blocks({"full": full, "gpa": gpa, "small": block(16, FullAttention)})
    matrix = 1024 * 1024 * 4 / MIB
    assert measured.slots["full"] > matrix
    assert measured.slots["gpa"] < 0.5 * matrix
    assert measured.slots["small"] < measured.slots["full"]
    assert measured.method == METHOD
    assert max(measured.slots.values()) < measured.total <= sum(measured.slots.values())


def test_weights_inputs_and_gradients_are_included():
    size, channels = 8, 16
    measured = measure_attention_blocks({"a": block(size, FullAttention, channels)})
    weights = sum(parameter.nbytes for parameter in block(size, FullAttention, channels).parameters())
    inputs = 2 * channels * size * size * 4
    assert measured.slots["a"] * MIB > 2 * (weights + inputs)


class Sum(torch.nn.Module):
    """A block without weights: what is left are its inputs, its output and their gradients."""

    spec = SlotSpec("up.16", 4, 4, 4, Size(16, 16), Size(16, 16))

    def forward(self, q_map, kv_map):
        return q_map + kv_map


def test_inputs_get_gradients():
    maps = measure_attention_blocks({"up.16": Sum()}).total * MIB / (4 * 16 * 16 * 4)
    assert 5 <= maps <= 6  # two inputs, the output, its gradient, and one or two for the inputs


def test_measuring_changes_nothing():
    blocks = {"a": block(8, FullAttention).half().eval()}
    before = torch.get_rng_state()
    first, second = measure_attention_blocks(blocks), measure_attention_blocks(blocks)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None and parameter.dtype == torch.half for parameter in blocks["a"].parameters())
    with pytest.raises(ValueError, match="no attention blocks"):
        measure_attention_blocks({})


def test_held_bytes_counts_each_storage_once():
    network = Network(True)
    plain = sum(parameter.nbytes for parameter in network.parameters())
    assert held_bytes(network, []) == plain
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    steps = 4 * len(list(network.parameters()))
    assert held_bytes(network, [optimiser]) == 4 * plain + steps  # weights, gradients, two moments, step counts
    network.alias = network.block.query.weight.detach()
    assert held_bytes(network, optimiser) == 4 * plain + steps


def test_a_run_is_recorded_and_survives_a_resume():
    record = MemoryRecord()
    task = TinyTask()
    fit(task, [record])
    found = record.record()
    assert found["method"] == METHOD
    assert set(found["phases"]) == {"train", "evaluate"}
    train, evaluate = found["phases"]["train"], found["phases"]["evaluate"]
    assert train["steps"] == 2
    assert train["peak_reserved_mib"] is None
    assert train["peak_allocated_mib"] > train["held_before_mib"] > 0
    assert evaluate["peak_allocated_mib"] > evaluate["held_before_mib"] > 0
    assert set(found["attention_blocks"]["slots_mib"]) == {"up.8"}
    assert found["attention_blocks"]["total_mib"] > 0

    again = MemoryRecord()
    again.load_state_dict(record.state_dict())
    assert again.record()["phases"] == found["phases"]
    assert again.record()["method"] == METHOD


def test_an_error_in_a_step_stops_the_counting():
    class Failing(TinyTask):
        def training_step(self, batch, batch_idx):
            raise ValueError("no")

    record = MemoryRecord()
    with pytest.raises(ValueError, match="no"):
        fit(Failing(), [record])
    assert record._counter is None


def test_too_little_gpu_memory_is_recorded_not_raised(monkeypatch):
    def fail(blocks):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(memory, "measure_attention_blocks", fail)
    assert "out of memory" in MemoryRecord._measured({})["failed"]


@pytest.mark.gpu
def test_the_allocator_answers_on_cuda():
    blocks = {"a": block(32, lambda spec: FullAttention(spec, kernel="reference")).cuda()}
    measured = measure_attention_blocks(blocks)
    assert measured.method == memory.ALLOCATOR
    assert measured.total > 1024 * 1024 * 4 / MIB
