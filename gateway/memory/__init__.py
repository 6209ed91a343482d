"""Where models live and what that takes: devices, budgets, placement, footprints, degradation, the watchdog.

Gateway process and command line. Knows processes by their pid only, nothing of HTTP, and imports no torch.
"""
