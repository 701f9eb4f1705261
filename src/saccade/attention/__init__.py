"""Attention as modules: backends, the block around them, and the policy that fills a model's slots."""

from saccade.attention.block import AttentionBlock, SlotBlock
from saccade.attention.cross_scale import CrossScaleBlock, InScaleBlock
from saccade.attention.full import FullAttention
from saccade.attention.gpa import GridPartitionedAttention
from saccade.attention.linear import LinearAttention
from saccade.attention.local import LocalAttention
from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention
from saccade.attention.none import NoAttention
from saccade.attention.nystromformer import NystromAttention
from saccade.attention.performer import PerformerAttention
from saccade.attention.pooled_block import PooledAttentionBlock
from saccade.attention.psal import PatchBasedStochasticAttention
from saccade.attention.reference_block import ReferenceBlock
from saccade.attention.reformer import ReformerAttention
from saccade.attention.slots import AttentionSlots, SlotPolicy
from saccade.attention.ylg import YourLocalAttention

__all__ = [
    "AttentionBlock",
    "AttentionCost",
    "AttentionSlots",
    "AttentionWeights",
    "CrossScaleBlock",
    "FullAttention",
    "GridPartitionedAttention",
    "InScaleBlock",
    "LinearAttention",
    "LocalAttention",
    "NoAttention",
    "NystromAttention",
    "PatchBasedStochasticAttention",
    "PerformerAttention",
    "PooledAttentionBlock",
    "ReferenceBlock",
    "ReformerAttention",
    "SlotBlock",
    "SlotPolicy",
    "SpatialAttention",
    "YourLocalAttention",
]
