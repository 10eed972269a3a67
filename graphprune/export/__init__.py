"""Circuits as files: the library's own format, the field's, networkx's, figures and a page."""
