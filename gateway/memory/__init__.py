"""Memory: which devices there are, what models take of them, and what happens when memory runs out.

- ``devices``: readings of GPUs, RAM and processes.
- ``placement``: the slots, and how a model is loaded on each.
- ``footprint/``: predicts what a model takes.
- ``account``: what one runner is charged in a slot, and what was measured.
- ``watchdog``: ends a runner that takes too much RAM.
- ``degradation``: loads a model with less after it ran out of memory.
- ``fit``: which models fit together.
- ``resident``: a cache of measurements, for metrics.

Gateway process and command line. Knows processes by pid only; imports no Flask, no torch and no ``gateway.processes``.
"""
