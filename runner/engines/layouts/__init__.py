"""Weight layouts for the CPU's matrix kernels, and quantization in chunks. Runner process."""
