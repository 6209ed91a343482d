"""What tests and benchmarks share: starting a real gateway and talking to it."""
