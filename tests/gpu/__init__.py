"""Tests on a real GPU, at real size. They skip, and say so, without one."""
