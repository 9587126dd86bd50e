"""Build only the Python sources of Detectron2: on PYTHONPATH while requirements/install.py builds it.

The package on the index lacks the C++ sources that its setup.py compiles, and one of its extras is a URL, which pip
refuses from an index.
"""

from typing import Any

import setuptools

complete_setup = setuptools.setup


def setup(**given: Any) -> Any:
    """Call setuptools' setup without the extensions and extras that setup.py asks for."""
    return complete_setup(**given | {"ext_modules": [], "extras_require": {}})


setuptools.setup = setup
