"""The tensor half of every family: how a request becomes tensors and tokens become an answer.

Each module has its class as ``FAMILY``; its declaration has the same name in ``models_registry/families/``.
"""
