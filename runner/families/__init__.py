"""The tensor half of each family: inputs, model classes, special requests. Runner process.

Each module exports its class as ``FAMILY``; the torch-free half has the same name in ``models_registry/families/``.
"""
