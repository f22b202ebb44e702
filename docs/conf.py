"""Settings of the documentation's build: Markdown pages and notebooks through MyST, every warning an error."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "stsbp"
author = copyright = "The stsbp authors"
version = release = installed("stsbp")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "reference"]
exclude_patterns = ["third_party_backend", "extensions", "pictures/*.py"]

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"

# The notebooks run here, each in an empty folder of its own. Pictures keep readable on light and on dark pages.
nb_execution_mode = "force"  # what was cached would not follow the code; -D nb_execution_mode=off leaves it out
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
# The lexer of notebooks knows no commands of several lines, and there is none where the notebooks are not run.
suppress_warnings = ["misc.highlighting_failure", "myst-nb.lexer"]
os.environ["MATPLOTLIBRC"] = str(HERE / "pictures" / "matplotlibrc")
os.environ.pop("STSBP_DATA", None)  # the published pages show what a reader without data sees
os.environ.update(NO_COLOR="1", COLUMNS="100", PYTHONWARNINGS="ignore:IProgress")  # tqdm asks for a widget

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name
    for name in ("AnyArray", "Float32", "Float64", "Int32", "Int64", "UInt8", "UInt32", "NativeArray", "Shape")
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "stsbp"
html_static_path = ["_static"]
html_css_files = ["own.css"]
