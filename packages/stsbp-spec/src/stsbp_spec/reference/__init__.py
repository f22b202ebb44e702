"""The references: float32 in the order of the spec (the `numpy` backend), and the paper's literal form (literal.py).

roundoff.py bounds the distance between float32 results and the exact values of the equations.
"""
