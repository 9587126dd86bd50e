"""The pages in this folder as a site: `make docs` builds it offline, and fails on a broken link or reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

project = "reproduce-swav"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "reproduce-swav"
exclude_patterns = ["ci"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
nitpicky = False
