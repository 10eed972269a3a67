"""What everybody uses and nobody owns: files, progress bars, torch modes, numbers as text."""
