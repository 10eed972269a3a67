"""Laplacians, spectra and sensitivities of directed weighted graphs."""
