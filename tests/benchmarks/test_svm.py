"""VOC07's SVMs against scikit-learn's own search, one class after the other; on the clock, as ours takes all cores."""

import os
import time
from functools import partial

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from evals.context import CenterCropConfig
from evals.voc07_svm import ProtocolConfig, fit_and_score
from reproduce.engine.distributed.processes import process_map
from tests.benchmarks.conftest import Compare

NUM_CLASSES, NUM_TRAIN, NUM_FEATURES = 8, 1000, 2048
COSTS = [0.1, 1.0, 10.0]


def test_svm(compare: Compare) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(2, NUM_TRAIN, NUM_FEATURES)) / NUM_FEATURES**0.5
    kinds = rng.normal(size=(NUM_CLASSES, NUM_FEATURES))
    labels = [tuple(np.where(rows @ kind > 1, 1, -1) for rows in (train, test)) for kind in kinds]
    protocol = ProtocolConfig("voc07_svm", 3, COSTS, CenterCropConfig(256, 224))

    def ours() -> None:
        of_all, cores = partial(fit_and_score, protocol, train, test), os.cpu_count() or 1
        assert len(list(process_map(of_all, dict(enumerate(labels)), cores, lambda: None))) == NUM_CLASSES

    def plain() -> None:
        for of_train, _ in labels:
            svm = LinearSVC(class_weight={1: 2, -1: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=0)
            search = GridSearchCV(svm, {"C": COSTS}, scoring="average_precision", cv=StratifiedKFold(3))
            search.fit(train, of_train).decision_function(test)

    compare(ours, plain, rounds=3, clock=time.perf_counter)
