"""On PYTHONPATH while Detectron2 is built (requirements/install.py): its Python sources only.

The package index has these without the C++ ones that setup.py wants to compile; and of the extras that it declares, one
is an address, which pip refuses from an index.
"""

from typing import Any

import setuptools

complete_setup = setuptools.setup


def setup(**given: Any) -> Any:
    """What setup.py calls, without extensions and extras."""
    return complete_setup(**given | {"ext_modules": [], "extras_require": {}})


setuptools.setup = setup
