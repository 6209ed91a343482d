"""Footprints: how many bytes a model takes, predicted from file headers and corrected by what loads took.

- ``prediction``: puts the parts together into what a slot is charged.
- ``weights``, ``kv_cache``, ``activations``, ``transient``: predict one part each.
- ``offload``: predicts how much of a model on a GPU lies in RAM.
- ``measured``: keeps what loads took, between runs.
- ``checkpoint``: reads the headers and configs that all of them need.

Gateway process and command line. Reads headers, file sizes and configs; no weights, no torch. Knows no slots.
"""
