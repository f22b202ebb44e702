"""Equations as data: expressions, their adjoints, how they are printed and stored."""
