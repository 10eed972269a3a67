"""Laplacians, spectra, sensitivities and the spectral pruners."""
