"""The references: float32 in the contract's order (the `numpy` backend), and the paper's literal form (literal.py).

A file here has the name of the spec file whose equations it computes.
"""
