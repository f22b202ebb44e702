"""Settings of hypothesis for all tests of the spec."""

from __future__ import annotations

import hypothesis

# The tests share the machine with others, so the time of an example says nothing about the code.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
