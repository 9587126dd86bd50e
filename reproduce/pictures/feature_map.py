"""Place features on a map in two dimensions, by scikit-learn's t-SNE.

Compared with openTSNE and umap-learn: all three are kept well. umap-learn brings numba and llvmlite, and openTSNE's
interpolation is faster only from ten thousand points on. scikit-learn is here already, for the SVM.
"""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

PERPLEXITY = 30.0
"""About the number of neighbors that a point should keep."""
NUM_ITERATIONS = 500
NUM_COMPONENTS = 50
"""Principal components that t-SNE gets, as its authors do: the rest is noise, and time."""
MIN_POINTS = 5
SAME = 1e-6
"""Features of unit length that differ by less are the same: a map would show rounding."""


def map_of(features: Tensor, classes: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Return where each row of the features `(n, d)` is on a map in [0, 1] x [0, 1], by class.

    Equal features give equal maps. Features that can't be placed, too few or all the same, give {}.
    """
    rows = F.normalize(features, dim=1).numpy()
    if len(rows) < MIN_POINTS or np.ptp(rows, axis=0).max() < SAME:
        return {}
    places = _places(rows)
    low, size = places.min(axis=0), np.ptp(places, axis=0).max()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sorted(set(classes))}
    for name, (x, y) in zip(classes, ((places - low) / size).tolist(), strict=True):
        found[name].append((round(x, 3), round(y, 3)))
    return found


def _places(rows: np.ndarray) -> np.ndarray:
    """Return the rows `(n, d)` in two dimensions `(n, 2)`."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    # Threads of t-SNE wait for each other at every iteration, and those of a busy machine for ever.
    with threadpool_limits(1):
        num_components = min(NUM_COMPONENTS, *rows.shape)
        reduced = PCA(num_components, svd_solver="covariance_eigh").fit_transform(rows)
        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, max_iter=NUM_ITERATIONS, init="pca", random_state=0)
        return tsne.fit_transform(reduced)
