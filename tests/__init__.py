"""Tests of the whole: real gateways, real runners, real checkpoints, real clients."""
