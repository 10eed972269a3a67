"""Adapters from architectures to masked models."""
