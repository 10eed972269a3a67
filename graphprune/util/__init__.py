"""Tools that every room uses: files, progress bars, torch modes, checks, numbers as text."""
