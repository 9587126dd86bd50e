"""The pictures of pretrainings, as the page shows them; their maps are drawn here."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.engine.runs.picture_files import MAP, Picture, Points, jpeg_path, read_pictures, svg_path
from reproduce.files import write_atomic
from reproduce.harness.report.rendering import render_template

MAP_SIZE = 400.0
MAP_EDGE = 6.0
COLORS = (
    *("#3b78c3", "#d9730d", "#2f9d58", "#d64545", "#8a63d2"),
    *("#9a6b4f", "#d655a5", "#7d8590", "#8f8c1a", "#1593a8"),
)
"""Colors of classes, which stand out from a light page and from a dark one."""
MAX_EMBEDDED_BYTES = 8_000_000
"""JPEGs that one page holds, so that a page of many pretrainings still opens at once; it links to further ones."""


@dataclass(frozen=True)
class Group:
    """The points of one class: how they look, and a path with a dot at each."""

    name: str
    color: str
    linecap: str
    """Shape of a dot: `round` or `square`."""
    path: str


@dataclass(frozen=True)
class DrawnMap:
    """A map in SVG units."""

    width: float
    height: float
    groups: list[Group]


def draw_map(points: Points) -> DrawnMap:
    """Lay out the points of each class. From the eleventh class on, colors come again, as squares."""
    room = MAP_SIZE - 2 * MAP_EDGE
    height = max((y for places in points.values() for _, y in places), default=1.0) * room + 2 * MAP_EDGE
    groups = []
    for number, (name, places) in enumerate(points.items()):
        linecap = "round" if number < len(COLORS) else "square"
        dots = (f"M{MAP_EDGE + x * room:.1f} {MAP_EDGE + y * room:.1f}h0" for x, y in places)
        groups.append(Group(name, COLORS[number % len(COLORS)], linecap, "".join(dots)))
    return DrawnMap(MAP_SIZE, round(height, 1), groups)


def write_map(run_folder: Path, picture: Picture) -> None:
    """Write a map as an SVG file that stands alone, for W&B and for whoever opens the folder."""
    content = render_template("map.svg.j2", drawn=draw_map(picture.points), picture=picture)
    write_atomic(svg_path(run_folder, MAP), content)


def collect(all_runs: Mapping[str, Mapping[str, Any]], page: Path) -> dict[str, dict[str, Any]]:
    """Return the pretrainings that have pictures by run_id, each with its label and pictures; links start at `page`.

    Pictures of another checkpoint than the result is of are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    room = MAX_EMBEDDED_BYTES
    for run_id, run in all_runs.items():
        if run["kind"] != "pretrain" or not (run["result"] or run["failure"]):
            continue
        sha256 = (run["result"] or {}).get("provenance", {}).get("checkpoint_sha256", "")
        shown = []
        for picture in read_pictures(Path(run["folder"]), str(sha256)):
            room -= len(picture.jpeg or b"")
            shown.append(_as_shown(picture, Path(run["folder"]), page, embed=room >= 0))
        if shown:
            found[run_id] = {"run_id": run_id, "label": run["label"], "pictures": shown}
    return found


def _as_shown(picture: Picture, run_folder: Path, page: Path, *, embed: bool) -> dict[str, Any]:
    """Return what the template needs of a picture."""
    data = base64.b64encode(picture.jpeg).decode() if picture.jpeg and embed else ""
    return {
        "title": picture.title,
        "caption": picture.caption,
        "alt": picture.alt,
        "width_px": picture.width_px,
        "height_px": picture.height_px,
        "map": draw_map(picture.points) if picture.points else None,
        "source": f"data:image/jpeg;base64,{data}" if data else "",
        "link": os.path.relpath(jpeg_path(run_folder, picture.name), page),
    }
