"""How tokens are made: one module per engine, each with its class as ``ENGINE``."""
