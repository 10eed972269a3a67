"""Greedy descent: edges decided one after another, in a fixed order (ACDC and its kin)."""
