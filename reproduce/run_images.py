"""Which images the files in a run's folder belong to: a result or checkpoint of other images does not count.

The name of a run does not tell, because it says what a data config calls the images, not what is in them.
"""

import contextlib
import hashlib
import itertools
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.files import read_json, write_json

RECORD = "images.json"
"""The content of each split that the files of an unfinished run are made from, by name (imagenet/train)."""
ASIDE = "of-other-images-"
"""Start of the name of the folder, inside the run's, that keeps what other images gave."""

PICTURES = "pictures"
"""Name of the folder of pictures in a run's."""


def start_over_on_other_images(folder: Path, split: str, content_sha256: str) -> Path | None:
    """Record the content of one of a run's splits; if it is not that of before, set the run's earlier files aside.

    Returns the folder in which they are now.
    """
    before = _recorded(folder)
    aside = None
    if before.get(split, content_sha256) != content_sha256:
        aside = set_aside(folder)
        before = {}
    write_json(folder / RECORD, {**before, split: content_sha256})
    return aside


def set_aside(folder: Path) -> Path:
    """Move a run's result, checkpoints and pictures to a folder named after their images; return that folder.

    Earlier files of the same images stay: the folder then gets a number.
    """
    content = "".join(value for _, value in sorted(_recorded(folder).items()))
    name = f"{ASIDE}{hashlib.sha256(content.encode()).hexdigest()[:8] if content else 'unknown'}"
    files = [*folder.glob("checkpoint*"), folder / "result.json", folder / PICTURES, folder / RECORD]
    files = [path for path in files if path.exists()]
    asides = (folder / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    aside = next(each for each in asides if not any((each / path.name).exists() for path in files))
    aside.mkdir(exist_ok=True)
    for path in files:
        path.replace(aside / path.name)
    return aside


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the content of each split that the run's files are of, as far as it is known."""
    with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):
        return dict(read_json(folder / RECORD))
    with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):
        return dict(read_json(folder / "result.json")["provenance"]["data_content_sha256"])
    return {}
