"""The runner process: one model, one device. The only place in the project that imports torch."""
