"""Searches for the edges whose removal serves a spectral goal."""
