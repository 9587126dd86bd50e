"""Options of `make docker-test`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sources", help="folder with git mirrors of apex and Detectron2 (default: stand-ins)")
