"""A circuit as a torch module of its own."""
