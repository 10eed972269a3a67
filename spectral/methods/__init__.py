"""Spectral pruning as methods on any masked model."""
