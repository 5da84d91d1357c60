"""Settings of Sphinx: `sphinx-build -W --keep-going docs docs/_build` builds the documentation."""

from muse_adapter.version import VERSION

project = "muse-adapter"
author = "the muse-adapter authors"
copyright = author
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
# Docstrings write code in single backticks.
default_role = "code"

myst_heading_anchors = 3
autodoc_mock_imports = ["mteb"]  # not there for Python 3.10
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = f"muse-adapter {VERSION}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
# Pages outside of a section have no navigation of it.
OUTSIDE = "index install quickstart api architecture contributing changelog citations"
html_sidebars = {page: [] for page in OUTSIDE.split()}
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
