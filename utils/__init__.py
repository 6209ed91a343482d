"""Small helpers for several rooms. No torch, no Flask."""
