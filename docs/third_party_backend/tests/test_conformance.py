"""The suite, one import away."""

from stsbp_conformance.suite import *  # noqa: F403
