"""The runner's own tests: its loop and its engines, in this process, without a gateway but for one module."""
