"""Weights in the layout that the CPU's matrix kernels read, and quantizing into it piece by piece. Runner process."""
