"""Settings of ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import re
import sys
import tomllib
from pathlib import Path

from sphinx.ext.napoleon.docstring import GoogleDocstring

import graphprune

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOK_SERVICE = "https://colab.research.google.com/"

project = "graphprune"
author = "The graphprune authors"
copyright = "the graphprune authors"
version = release = graphprune.__version__

# Napoleon takes the words before a colon in a property's first line for its type. Ours are
# sentences, and the type stands in the signature.
GoogleDocstring._consume_inline_attribute = lambda self: ("", self._dedent(self._consume_to_end()))

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_line",
]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs

# Pages name things as users import them; the modules that they live in are nobody's business.
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

smartquotes = False  # they would make one dash of an option's two

html_theme = "furo"
html_title = f"graphprune {version}"
html_static_path = ["_static"]
html_css_files = ["graphprune.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# Fonts are the reader's own, so that the pages open from disk without a network.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
    "top_of_page_buttons": [],
}


def tidy_signature(app, what, name, obj, options, signature, returns):
    """Signatures with dots for defaults that are no Python, such as ``<factory>``."""
    return re.sub(r"<[^<>]*>", "...", signature or "") or None, returns


def open_by_address(app, docname, source):
    """Tutorials open in the notebook service without an upload, once the repository has an address.

    That is the line ``urls = { Repository = "https://github.com/OWNER/NAME" }`` of pyproject.toml.
    """
    address = PROJECT.get("urls", {}).get("Repository", "")
    if docname.startswith("tutorials/") and "github.com/" in address:
        where = address.partition("github.com/")[2].removesuffix(".git").strip("/")
        link = f"{NOTEBOOK_SERVICE}github/{where}/blob/main/docs/{docname}.ipynb"
        source[0] = source[0].replace(f"({NOTEBOOK_SERVICE})", f"({link})")


def setup(app):
    """Hooks of this documentation."""
    app.connect("source-read", open_by_address)
    app.connect("autodoc-process-signature", tidy_signature)
