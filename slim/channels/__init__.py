"""The core: which channels belong together, and how to remove them exactly. Knows only torch and numpy.

trace (one forward on meta tensors) -> ChannelGraph -> plan (plain data) -> mask or rebuild.
"""

from slim.channels.build import trace
from slim.channels.counting import count_macs, count_params
from slim.channels.fold import fold
from slim.channels.graph import ChannelGraph
from slim.channels.meta_forward import unwrap
from slim.channels.plan import Keep, Plan
from slim.channels.select_layer import ChannelSelect
from slim.channels.structure import Balance, ChannelGroup, Layer, Scale, Space
from slim.channels.surgery import mask, plan_of, rebuild
from slim.channels.trace_record import Axis

__all__ = [
    "Axis",
    "Balance",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelSelect",
    "Keep",
    "Layer",
    "Plan",
    "Scale",
    "Space",
    "count_macs",
    "count_params",
    "fold",
    "mask",
    "plan_of",
    "rebuild",
    "trace",
    "unwrap",
]
