"""Attention as modules: backends, the block around them, and the policy that fills a model's slots."""

from saccade.attention.block import AttentionBlock
from saccade.attention.full import FullAttention
from saccade.attention.gpa import GridPartitionedAttention
from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention
from saccade.attention.none import NoAttention
from saccade.attention.slots import AttentionSlots, SlotPolicy

__all__ = [
    "AttentionBlock",
    "AttentionCost",
    "AttentionSlots",
    "AttentionWeights",
    "FullAttention",
    "GridPartitionedAttention",
    "NoAttention",
    "SlotPolicy",
    "SpatialAttention",
]
