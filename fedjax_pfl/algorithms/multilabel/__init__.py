"""Federated multi-label classification."""
