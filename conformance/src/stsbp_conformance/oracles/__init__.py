"""What backends are compared with: the paper's literal form (literal.py), and bounds of float32's errors (roundoff.py).

roundoff.py bounds the distance between float32 results and the exact values of the equations.
"""
