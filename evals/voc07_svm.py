"""One-vs-rest linear SVMs on VOC07 (A.5, Table 3)."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from evals.context import CenterCropConfig, EvalContext
from evals.features import extract_features
from models.networks.trunk import Trunk
from reproduce.data.datasets.voc import VOC_CLASSES, read_voc_labels
from reproduce.engine.distributed.collectives import all_reduce_sum, device, rank, world_size
from reproduce.engine.distributed.processes import process_map
from reproduce.errors import UserError
from reproduce.files import read_json, write_json

LENGTH_FLOOR = 1e-5
"""Added to a feature's length before it is divided by that."""


@dataclass
class ProtocolConfig:
    """The keys of conf/eval/voc07_svm.yaml. `costs` are the values of C to choose from."""

    name: str
    num_folds: int
    costs: list[float]
    center_crop: CenterCropConfig


def evaluate(trunk: Trunk, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """Return `map`: the mean over the 20 classes of the all-point average precision on the test split, in percent.

    A difficult object counts as absent in training; in the test, images on which a class is only difficult are left out
    for that class. Classes with fewer training images than folds, or without a test image, are left out of the mean;
    the full VOC07 has none. The ranks share the classes, and each fits its own in `cluster.num_threads` processes.
    """
    run = context.run
    splits = []
    for split in (context.dataset.train, context.dataset.val):
        images, labels = read_voc_labels(context.root, context.dataset, split)
        run.record_split(split, images)
        features = extract_features(trunk, images, protocol.center_crop, context)
        order = np.argsort(features.indices)  # the list's order, which folds and LIBLINEAR depend on
        rows = np.asarray(features.rows)[order]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) + LENGTH_FLOOR
        splits.append((rows / lengths, np.array(labels)[np.asarray(features.indices)[order]]))
    (train, train_labels), (test, test_labels) = splits
    run.counts["num_test_images"] = len(test)

    run.metrics.truncate(0)
    scored = [
        number
        for number in range(len(VOC_CLASSES))
        if (train_labels[:, number] == 1).sum() >= protocol.num_folds and (test_labels[:, number] == 1).any()
    ]
    if not scored:
        raise UserError(f"no class of {context.root} has {protocol.num_folds} training images and a test image")
    precisions = torch.zeros(len(VOC_CLASSES), dtype=torch.float64, device=device())

    def record(number: int, precision: float, cost: float) -> None:
        precisions[number] = precision
        run.metrics.log(number + 1, len(VOC_CLASSES), ap=precision, cost=cost)

    cache = ClassResultCache(run.folder / "classes", (train, train_labels, test, test_labels))
    to_fit = {}
    for number in scored[rank() :: world_size()]:
        if cached := cache.get(number):
            record(number, *cached)
        else:
            to_fit[number] = (train_labels[:, number], test_labels[:, number])
    with context.preemption.rank_local_work("the results of scored classes are kept") as leave_if_requested:
        # Processes, not threads: LIBLINEAR draws from one random generator per process.
        fit_class = partial(fit_and_score, protocol, train, test)
        for number, result in process_map(fit_class, to_fit, context.cfg.cluster.num_threads, leave_if_requested):
            cache.put(number, *result)
            record(number, *result)
    all_reduce_sum(precisions)
    for number in scored:
        run.first_steps.note({"average precision": precisions[number]})
    run.counts["num_classes_scored"] = len(scored)
    return {"map": float(np.mean(precisions[scored].tolist()))}


class ClassResultCache:
    """A folder with one file per class: average precision and cost, valid for the same features, labels and code."""

    def __init__(self, folder: Path, arrays: tuple[np.ndarray, ...]) -> None:
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        self._folder, self._sha256 = folder, digest.hexdigest()

    def get(self, number: int) -> tuple[float, float] | None:
        """Return average precision and cost of a class; None if none are stored for these features."""
        path = self._path(number)
        stored = read_json(path) if path.is_file() else {}
        return (stored["ap"], stored["cost"]) if stored.get("features_sha256") == self._sha256 else None

    def put(self, number: int, precision: float, cost: float) -> None:
        """Store average precision and cost of a class."""
        write_json(self._path(number), {"ap": precision, "cost": cost, "features_sha256": self._sha256})

    def _path(self, number: int) -> Path:
        return self._folder / f"{VOC_CLASSES[number]}.json"


def fit_and_score(
    protocol: ProtocolConfig, train: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> tuple[float, float]:
    """Return one class' average precision on the test split in percent, and the cost chosen by cross-validation.

    `train` and `test` are features `(n, d)`; labels `(n,)` are 1 for present, 0 for only difficult, -1 for absent.
    """
    present, is_scored = train_labels == 1, test_labels != 0
    cost = select_cost(train, present, protocol.costs, protocol.num_folds)
    scores = fit_svm(train, present, cost).decision_function(test[is_scored])
    return average_precision(test_labels[is_scored] == 1, scores) * 100, cost


def fit_svm(rows: np.ndarray, present: np.ndarray, cost: float) -> LinearSVC:
    """Fit a linear SVM by LIBLINEAR's dual solver: squared hinge loss, positives weighted twice."""
    svm = LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=0)
    with warnings.catch_warnings():
        # The protocol stops at 2000 iterations, before the highest costs converge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(rows, present)


def select_cost(rows: np.ndarray, present: np.ndarray, costs: list[float], num_folds: int) -> float:
    """Return the cost with the highest mean average precision over the folds; the lowest one if several tie.

    Folds are scored by scikit-learn's average precision, which interpolates nothing, as VISSL scores them. The test is
    scored by VOC's own metric (`average_precision`).
    """
    by_fold = []
    for tr, val in StratifiedKFold(num_folds).split(rows, present):
        fold_rows, held_out = rows[tr], rows[val]
        fits = (fit_svm(fold_rows, present[tr], cost) for cost in costs)
        by_fold.append([average_precision_score(present[val], svm.decision_function(held_out)) for svm in fits])
    means = [np.mean(of_cost) for of_cost in zip(*by_fold, strict=True)]
    return costs[int(np.argmax(means))]


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the all-point average precision in [0, 1] of `scores (n,)` for boolean `truth (n,)`.

    It is VOC's area under the precision-recall curve, whose precision is first made non-increasing in recall.
    """
    order = np.argsort(-scores, kind="stable")
    hits = truth[order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[truth[order]].sum() / truth.sum())
