"""The suite on every installed backend: what a third party writes for its own, no more."""

from stsbp_conformance.suite import *  # noqa: F403
