"""`make docs` makes a site of the pages, with the contracts of the code, and refuses a broken link."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.system import REPO_ROOT

DOCS = REPO_ROOT / "docs"


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", str(source), str(target)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_page_is_reached_from_the_first(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    contents = (site / "index.html").read_text()
    assert {name for name in pages if f'href="{name}.html' not in contents} == {"index"}


def test_contracts_are_read_from_the_code(site: Path) -> None:
    text = text_of(site / "api.html")
    for name in ("models.methods.base.Method", "evals.context.EvalContext", "evals.features.extract_features"):
        assert name in text
    assert "Return the scalar loss of one batch" in text  # the docstring of Method.loss
    assert "batchnorm_group_size" in text and "min_points_above_control" in text


def test_the_site_needs_no_network(site: Path) -> None:
    """Scripts, styles, fonts and pictures are files of the site; only links of the text lead elsewhere."""
    for page in site.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert loaded and not [each for each in loaded if "//" in each], page


def test_broken_links_fail(tmp_path: Path) -> None:
    shutil.copy(DOCS / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text("# One\n\n[page](page.md)\n\n```{toctree}\npage\n```\n")
    (tmp_path / "page.md").write_text("# Page\n\n## A heading\n\n[x](#a-heading)\n")
    assert build(tmp_path, tmp_path / "out").returncode == 0
    links = ("nowhere.md", "page.md#no-such-heading", "../nothing/here.yaml")
    (tmp_path / "page.md").write_text("# Page\n\n" + "".join(f"[x]({link})\n\n" for link in links))
    broken = build(tmp_path, tmp_path / "out")
    assert broken.returncode
    assert [number for number in (3, 5, 7) if f"page.md:{number}" not in broken.stderr] == []
