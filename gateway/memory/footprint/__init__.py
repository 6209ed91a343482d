"""How many bytes a model takes: predicted from file headers, corrected by what loads really took.

Gateway process and command line. Reads headers, file sizes and configs only; no torch, no weights. ``weights``,
``cache`` and ``working`` predict a part each, ``measured`` keeps what loads took, ``predict`` puts them together;
``offload`` tells what lies in RAM of a model on a GPU.
"""

from checkpoints.safetensors_header import HeaderError, safetensors_sizes
from gateway.memory.footprint.kv_cache import cache_token_bytes
from gateway.memory.footprint.offload import Offloads
from gateway.memory.footprint.prediction import LEAST_CACHE, Charge, Footprints, Parts, usual_bits
from gateway.memory.footprint.weights import float_bytes, laid_out, later_bytes, weight_bytes

__all__ = [
    "LEAST_CACHE",
    "Charge",
    "Footprints",
    "HeaderError",
    "Offloads",
    "Parts",
    "cache_token_bytes",
    "float_bytes",
    "laid_out",
    "later_bytes",
    "safetensors_sizes",
    "usual_bits",
    "weight_bytes",
]
