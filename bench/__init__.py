"""Measurements, one script each: ``python -m bench.<name>``. Figures go to ``docs/benchmarks/``."""
