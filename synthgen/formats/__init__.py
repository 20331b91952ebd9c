"""Formats of other programs: a folder a format, which says what it is and holds what reads and what writes it."""
