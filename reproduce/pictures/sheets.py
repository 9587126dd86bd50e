"""The pictures of a trained network, drawn from a sample of images: neighbors, atlas, map."""

import torch.nn.functional as F
from torch import Tensor

from evals.knn import neighbors
from reproduce.engine.runs.picture_files import ATLAS, MAP, NEIGHBORS, Picture, sheet_picture
from reproduce.pictures.sample import Sample, spread

NUM_QUERIES, NUM_NEIGHBORS = 10, 8
NUM_PROTOTYPES, NUM_NEAREST, BLOCK = 12, 9, 3
"""Prototypes of an atlas, and the nearest images of each, in blocks of 3 x 3."""
BLOCKS_PER_ROW = 4


def nearest_rows(features: Tensor, queries: list[int], number: int) -> list[list[int]]:
    """Return the rows of the features `(n, d)` that are nearest to each query's row by cosine, without itself."""
    found = neighbors(F.normalize(features[queries], dim=1), features.numpy(), number + 1)[1].tolist()
    return [[row for row in rows if row != query][:number] for query, rows in zip(queries, found, strict=True)]


def neighbors_picture(sample: Sample) -> Picture:
    """Return the picture of a few images and their nearest neighbors, a row each."""
    queries = spread(len(sample.features), NUM_QUERIES)
    labeled = len(set(sample.images.labels)) > 1
    rows, words, hits = [], [], []
    for query, found in zip(queries, nearest_rows(sample.features, queries, NUM_NEIGHBORS), strict=True):
        same = [sample.class_of(row) == sample.class_of(query) for row in found]
        tiles = [sample.tile(row, marked=labeled and mark) for row, mark in zip(found, same, strict=True)]
        rows.append([sample.tile(query), None, *tiles])
        words.append(f"{sample.class_of(query)} {sum(same)} of {len(same)}")
        hits += same
    marked = f" A green line marks the class of the first image: {sum(hits)} of {len(hits)}." if labeled else ""
    classes = f" Neighbors of the same class: {', '.join(words)}." if labeled else ""
    return sheet_picture(
        rows,
        name=NEIGHBORS,
        title="Nearest neighbors",
        caption=(
            f"Each row: an image, then those nearest to it among {sample.words}, by the cosine of pooled features."
            f"{marked}"
        ),
        alt=f"{len(rows)} images and their nearest neighbors.{classes}",
        checkpoint_sha256=sample.checkpoint_sha256,
    )


def nearest_to_prototypes(scores: Tensor) -> dict[int, list[int]]:
    """Return, by prototype, the rows of the scores `(n, K)` that are highest, highest first.

    The prototypes are those that are the first choice of the most rows, the most frequent first.
    """
    counts = scores.argmax(dim=1).bincount(minlength=scores.shape[1])
    chosen = counts.argsort(descending=True, stable=True)[:NUM_PROTOTYPES].tolist()
    number = min(NUM_NEAREST, len(scores))
    return {prototype: scores[:, prototype].topk(number).indices.tolist() for prototype in chosen}


def atlas_picture(sample: Sample) -> Picture:
    """Return the picture of the images nearest to each of a few prototypes, in blocks of 3 x 3, four in a row."""
    assert sample.scores is not None
    nearest = nearest_to_prototypes(sample.scores)
    blocks, rows, words = list(nearest.values()), [], []
    for start in range(0, len(blocks), BLOCKS_PER_ROW):
        beside = blocks[start : start + BLOCKS_PER_ROW]
        for line in range(0, NUM_NEAREST, BLOCK):
            tiles = [(*(sample.tile(row) for row in block[line : line + BLOCK]), None) for block in beside]
            rows.append([tile for each in tiles for tile in each][:-1])
        rows.append([])
    for prototype, block in nearest.items():
        names = [sample.class_of(row) for row in block]
        most = max(names, key=names.count)
        words.append(f"{prototype}: {names.count(most)} of {len(names)} are {most}")
    return sheet_picture(
        rows[:-1],
        name=ATLAS,
        title="Prototypes",
        caption=(
            f"The {len(nearest)} prototypes that are the first choice of the most of {sample.words}, and of each the "
            f"{NUM_NEAREST} images with the highest scores. {sample.scores.argmax(dim=1).unique().numel()} of "
            f"{sample.scores.shape[1]} prototypes are the first choice of an image."
        ),
        alt=f"{len(nearest)} blocks of images, one for each prototype. Prototype {'; '.join(words)}.",
        checkpoint_sha256=sample.checkpoint_sha256,
    )


def map_picture(sample: Sample, points: dict[str, list[tuple[float, float]]]) -> Picture:
    """Return the picture of a map."""
    return Picture(
        name=MAP,
        title="Map of features",
        caption=(
            f"{sample.words[0].upper()}{sample.words[1:]}, placed by t-SNE of their pooled features, colored by class. "
            "Neighbors on the map have similar features; distances between groups and their sizes mean nothing."
        ),
        alt=f"Scatter plot of {sum(map(len, points.values()))} images in {len(points)} classes.",
        points=points,
        checkpoint_sha256=sample.checkpoint_sha256,
    )
