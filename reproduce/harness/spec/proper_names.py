"""How people write what tables and evaluations are named in files: `knn_pooled` is "kNN pooled"."""

import re

PROPER_NAMES = {
    name.lower(): name for name in ("COCO", "DETR", "ImageNet", "kNN", "MoCo", "SimCLR", "SVM", "SwAV", "VOC")
}
"""Proper names by their lower-case form."""


def spell_out(identifier: str) -> str:
    """Return the words of an identifier, with proper names; any other first word begins with a capital letter."""
    first, *others = re.sub(r"(?<=[a-z])(?=\d)|_", " ", identifier).split()
    return " ".join([PROPER_NAMES.get(first, first.capitalize()), *(PROPER_NAMES.get(word, word) for word in others)])
