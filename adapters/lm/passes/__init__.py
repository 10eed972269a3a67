"""Passes of a language model: clean, masked, sparse and incremental."""
