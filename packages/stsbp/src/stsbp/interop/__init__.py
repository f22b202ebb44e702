"""Trained networks that leave for other programs, and networks of other programs that come in."""
