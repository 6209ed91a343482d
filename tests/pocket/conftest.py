"""Imports the package first: it mends torchvision, which transformers imports with every model."""

import pocket  # noqa: F401
