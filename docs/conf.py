"""Settings of the documentation's build: Markdown pages through MyST, every warning an error (`nox -s docs`)."""

project = "stsbp"
author = "The stsbp authors"
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "stsbp"
exclude_patterns = ["third_party_backend"]
