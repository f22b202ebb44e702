"""Proof that a backend computes what stsbp_spec says: eight tiers of checks, each a function of an opened backend.

`check.py` says what a check is, `tiers/` holds them, `suite.py` makes pytest tests of them, `plugin.py` chooses the
backends and prints the matrix, `faults.py` tests the suite itself. This module imports none of them.
"""

from importlib.metadata import version

__version__ = version("stsbp-conformance")

__all__ = ["__version__"]
