"""One-vs-rest linear SVMs on VOC07 (A.5, Table 3)."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from evals.context import CenterCropConfig, EvalContext
from evals.features import extract_features
from models.networks.resnet import ResNet
from reproduce.data.datasets.voc import VOC_CLASSES, read_voc_labels
from reproduce.engine.distributed.collectives import all_reduce_sum, device, rank, world_size
from reproduce.engine.distributed.processes import process_map
from reproduce.errors import UserError
from reproduce.files import read_json, write_json

LENGTH_FLOOR = 1e-5
"""Added to a feature's length before dividing by it."""


@dataclass
class ProtocolConfig:
    """conf/eval/voc07_svm.yaml."""

    name: str
    num_folds: int
    costs: list[float]
    center_crop: CenterCropConfig


def evaluate(trunk: ResNet, protocol: ProtocolConfig, context: EvalContext) -> dict[str, float]:
    """`map`: the mean over the 20 classes of the all-point average precision on the test split, in percent.

    Training: difficult objects count as absent. Test: a class is not judged on pictures where it is only difficult.
    Classes without enough training pictures for the folds, or without a test picture, are left out and counted; on the
    full VOC07 there is none. The classes are shared by the ranks, and on each by `cluster.num_threads` processes.
    """
    splits = []
    for split in (context.dataset.train, context.dataset.val):
        pictures, labels = read_voc_labels(context.root, context.dataset, split)
        context.run.record_split(split, pictures)
        found = extract_features(trunk, pictures, protocol.center_crop, context)
        order = np.argsort(found.indices)  # the list's, whatever order they were read in: folds and LIBLINEAR go by it
        rows = np.asarray(found.rows)[order]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) + LENGTH_FLOOR
        splits.append((rows / lengths, np.array(labels)[np.asarray(found.indices)[order]]))
    (train, train_labels), (test, test_labels) = splits
    context.run.counts["num_test_images"] = len(test)

    context.run.metrics.truncate(0)
    judged = [
        number
        for number in range(len(VOC_CLASSES))
        if (train_labels[:, number] == 1).sum() >= protocol.num_folds and (test_labels[:, number] == 1).any()
    ]
    if not judged:
        raise UserError(f"no class of {context.root} has {protocol.num_folds} training pictures and a test picture")
    precisions = torch.zeros(len(VOC_CLASSES), dtype=torch.float64, device=device())

    def take(number: int, answer: list[float]) -> None:
        precisions[number], cost = answer
        context.run.metrics.log(number + 1, len(VOC_CLASSES), ap=answer[0], cost=cost)

    kept = KeptClasses(context.run.folder / "classes", (train, train_labels, test, test_labels))
    to_do = {}
    for number in judged[rank() :: world_size()]:
        if before := kept.get(number):
            take(number, before)
        else:
            to_do[number] = (train_labels[:, number], test_labels[:, number])
    with context.preemption.rank_local_work("the classes that are judged are kept") as leave_if_requested:
        # Processes, not threads: LIBLINEAR draws from one random generator per process.
        of_class = partial(judge, protocol, train, test)
        for number, answer in process_map(of_class, to_do, context.cfg.cluster.num_threads, leave_if_requested):
            kept.put(number, list(answer))
            take(number, list(answer))
    all_reduce_sum(precisions)
    context.run.counts["num_classes_judged"] = len(judged)
    return {"map": float(np.mean(precisions[judged].tolist()))}


class KeptClasses:
    """The average precision and the cost of each class that was judged, one file each, of the features given."""

    def __init__(self, folder: Path, features: tuple[np.ndarray, ...]) -> None:
        digest = hashlib.sha256()
        for array in features:
            digest.update(np.ascontiguousarray(array).data)
        self._folder, self._of = folder, digest.hexdigest()

    def get(self, number: int) -> list[float] | None:
        """What was kept of a class; None where there is nothing, or of other features."""
        file = self._file(number)
        kept = read_json(file) if file.is_file() else {}
        return [kept["ap"], kept["cost"]] if kept.get("features_sha256") == self._of else None

    def put(self, number: int, answer: list[float]) -> None:
        """Keep a class."""
        write_json(self._file(number), {"ap": answer[0], "cost": answer[1], "features_sha256": self._of})

    def _file(self, number: int) -> Path:
        return self._folder / f"{VOC_CLASSES[number]}.json"


def judge(
    protocol: ProtocolConfig, train: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> tuple[float, float]:
    """Average precision of one class on the test split in percent, and the cost that the folds chose.

    Rows `(n, d)`; labels `(n,)` of the class: 1 present, 0 only as difficult, -1 absent.
    """
    present, counts = train_labels == 1, test_labels != 0
    cost = best_cost(train, present, protocol.costs, protocol.num_folds)
    scores = fit(train, present, cost).decision_function(test[counts])
    return average_precision(test_labels[counts] == 1, scores) * 100, cost


def fit(rows: np.ndarray, present: np.ndarray, cost: float) -> LinearSVC:
    """LIBLINEAR's dual solver, squared hinge, positives weighing twice."""
    svm = LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=0)
    with warnings.catch_warnings():
        # The protocol stops at 2000 iterations; with the highest costs that is before convergence.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(rows, present)


def best_cost(rows: np.ndarray, present: np.ndarray, costs: list[float], num_folds: int) -> float:
    """The cost with the highest mean average precision over the folds; the lowest such where several tie."""
    by_fold = []
    for tr, val in StratifiedKFold(num_folds).split(rows, present):
        seen, held_out = rows[tr], rows[val]
        fits = (fit(seen, present[tr], cost) for cost in costs)
        by_fold.append([average_precision(present[val], svm.decision_function(held_out)) for svm in fits])
    means = [np.mean(of_cost) for of_cost in zip(*by_fold, strict=True)]
    return costs[int(np.argmax(means))]


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """All-point average precision in [0, 1] of `scores (n,)` for boolean `truth (n,)`.

    VOC's area under the precision-recall curve, with precision made non-increasing from the right.
    """
    order = np.argsort(-scores, kind="stable")
    hits = truth[order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[truth[order]].sum() / truth.sum())
