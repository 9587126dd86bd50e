"""One-vs-rest linear SVMs on VOC07 (A.5, Table 3)."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from evals.setting import Pixels, Setting, features
from models.resnet import ResNet
from reproduce.data.voc import CLASSES, read_split
from reproduce.errors import UserError

LENGTH_FLOOR = 1e-5
"""Added to a feature's length before dividing by it."""


@dataclass
class Protocol:
    """conf/eval/voc07_svm.yaml."""

    name: str
    num_folds: int
    costs: list[float]
    pixels: Pixels


def evaluate(trunk: ResNet, protocol: Protocol, setting: Setting) -> dict[str, float]:
    """`map`: the mean over the 20 classes of the all-point average precision on the test split, in percent.

    Training: difficult objects count as absent. Test: a class is not judged on pictures where it is only difficult.
    Classes without enough training pictures for the folds, or without a test picture, are left out and counted; on the
    full VOC07 there is none.
    """
    splits = []
    for split in (setting.dataset.train, setting.dataset.val):
        pictures, labels = read_split(setting.root, split)
        setting.provenance.setdefault("data_manifest_sha256", pictures.sha256())
        rows, indices = features(trunk, pictures, protocol.pixels, setting)
        rows_np = rows.cpu().numpy()
        lengths = np.linalg.norm(rows_np, axis=1, keepdims=True) + LENGTH_FLOOR
        splits.append((rows_np / lengths, np.array(labels)[indices.cpu().numpy()]))
    (train, train_labels), (test, test_labels) = splits
    setting.counts["num_test_images"] = len(test)

    precisions = {}
    for number, name in enumerate(CLASSES):
        present, judged = train_labels[:, number] == 1, test_labels[:, number] != 0
        truth = test_labels[judged, number] == 1
        if present.sum() < protocol.num_folds or not truth.any():
            continue
        cost = best_cost(train, present, protocol.costs, protocol.num_folds)
        scores = fit(train, present, cost).decision_function(test[judged])
        precisions[name] = average_precision(truth, scores) * 100
        setting.tell(number + 1, len(CLASSES), ap=precisions[name], cost=cost)
    if not precisions:
        raise UserError(f"no class of {setting.root} has {protocol.num_folds} training pictures and a test picture")
    setting.counts["num_classes_judged"] = len(precisions)
    return {"map": float(np.mean(list(precisions.values())))}


def fit(rows: np.ndarray, present: np.ndarray, cost: float) -> LinearSVC:
    """LIBLINEAR's dual solver, squared hinge, positives weighing twice."""
    svm = LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=0)
    with warnings.catch_warnings():
        # The protocol stops at 2000 iterations; with the highest costs that is before convergence.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return svm.fit(rows, present)


def best_cost(rows: np.ndarray, present: np.ndarray, costs: list[float], num_folds: int) -> float:
    """The cost with the highest mean average precision over the folds; the lowest such where several tie."""
    folds = list(StratifiedKFold(num_folds).split(rows, present))
    means = [
        np.mean(
            [
                average_precision(present[val], fit(rows[tr], present[tr], cost).decision_function(rows[val]))
                for tr, val in folds
            ]
        )
        for cost in costs
    ]
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
