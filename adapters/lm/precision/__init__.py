"""Projections in low precision: grids of values, rounded linear maps, the quantised copy."""
