"""How many bytes a model takes: predicted from file headers, corrected by what loads really took.

Gateway process and command line. Reads headers, file sizes and configs only; no torch, no weights. ``weights``,
``cache`` and ``working`` predict a part each, ``measured`` keeps what loads took, ``predict`` puts them together;
``offload`` tells what lies in RAM of a model on a GPU.
"""

from gateway.footprint.cache import cache_token_bytes
from gateway.footprint.offload import Offloads
from gateway.footprint.predict import LEAST_CACHE, Charge, Footprints, Parts, usual_bits
from gateway.footprint.weights import float_bytes, laid_out, later_bytes, weight_bytes
from utils.safetensors_header import HeaderError, safetensors_sizes

__all__ = ["LEAST_CACHE", "Charge", "Footprints", "HeaderError", "Offloads", "Parts", "cache_token_bytes",
           "float_bytes", "laid_out", "later_bytes", "safetensors_sizes", "usual_bits", "weight_bytes"]  # fmt: skip
