"""Out of the house: a network as ONNX, ``torch.export`` and int8 files, each run and compared before it stays.

``export`` writes them, beginning with ``capture``; ``Parity`` says how far a file is from the network; ``latencies``
times networks and files in turns; ``measure_rounding`` finds the widths that a runtime likes.
"""

from __future__ import annotations

from slim.deploy.capture import capture
from slim.deploy.export import UNFINISHED, Exported, Options, check, check_effect, check_opset, export
from slim.deploy.formats import FORMATS, size
from slim.deploy.ladder import RUNGS, latencies
from slim.deploy.parity import Parity, compare
from slim.deploy.pt2e import call
from slim.deploy.rounding import Rounding
from slim.deploy.rounding import measure as measure_rounding

__all__ = [
    "FORMATS",
    "RUNGS",
    "UNFINISHED",
    "Exported",
    "Options",
    "Parity",
    "Rounding",
    "call",
    "capture",
    "check",
    "check_effect",
    "check_opset",
    "compare",
    "export",
    "latencies",
    "measure_rounding",
    "size",
]
