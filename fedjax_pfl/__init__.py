"""Personalised federated learning in JAX: a model per client, one compiled round."""

__version__ = "0.1.0"
