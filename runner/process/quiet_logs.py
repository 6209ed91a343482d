"""Keeps libraries from filling the log with lines nobody can act on. Runner and forkserver."""

import logging


def quiet() -> None:
    """bitsandbytes warns of kernels it would like and of every int8 layer's casts, every time."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
