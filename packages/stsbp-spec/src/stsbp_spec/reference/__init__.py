"""The references: float32 in the contract's order (the `numpy` backend), and the paper's literal form (literal.py).

roundoff.py bounds how far float32 may be from the numbers of the equations.
"""
