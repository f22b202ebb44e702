"""Proof that a backend computes what stsbp_spec defines: eight tiers of checks. Each check is a function of a backend.

`check.py` defines checks, `tiers/` contains them, and `suite.py` makes pytest tests of them. `plugin.py` chooses the
backends and prints the matrix. `faults` tests the suite itself. This module imports none of them.
"""

from importlib.metadata import version

__version__ = version("stsbp-conformance")

__all__ = ["__version__"]
