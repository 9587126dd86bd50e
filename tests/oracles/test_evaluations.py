"""DINO's vote of the nearest neighbors and VISSL's SVMs beside ours."""

import logging
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from torch import nn

from evals import voc07_svm
from evals.context import CenterCropConfig
from evals.knn import neighbors, vote
from tests.oracles.official import checkout, definitions

COSTS = [0.01, 0.1, 1.0, 10.0]


class Thread:
    """A thread that runs when it is started, because LIBLINEAR's random generator is one for all threads."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.start = partial(target, *args)

    def join(self) -> None:
        """Return at once."""


class Options(dict[str, Any]):
    """Options by item and by attribute, as VISSL reads them."""

    __getattr__ = dict.__getitem__


def vissl_trainer(folder: Path, output: Path) -> Any:
    """Its SVMTrainer, with files in `output` and the seed of ours."""
    svm = folder / "vissl/utils/svm_utils"
    code = definitions(svm / "evaluate.py", "calculate_ap", "get_precision_recall", np=np)
    calculate_ap = code["calculate_ap"]
    code["calculate_ap"] = lambda *curve: float(calculate_ap(*curve)[0])  # which numpy no longer does by itself
    code = definitions(
        svm / "svm_trainer.py", "SVMTrainer", **code, logging=logging, pickle=pickle,
        threading=SimpleNamespace(Thread=Thread),
        cross_val_score=cross_val_score, LinearSVC=partial(LinearSVC, random_state=0),
        load_file=lambda path: np.load(path) if path.endswith(".npy") else pickle.loads(Path(path).read_bytes()),
        save_file=lambda array, path: np.save(path, array),
        g_pathmgr=SimpleNamespace(mkdirs=lambda path: Path(path).mkdir(), exists=lambda p: Path(p).exists(), open=open),
    )  # fmt: skip
    options = Options(
        normalize=True, costs={"costs_list": list(COSTS), "base": -1.0}, cls_list=[], force_retrain=False,
        penalty="l2", loss="squared_hinge", dual=True, max_iter=2000, cross_val_folds=3,
    )  # fmt: skip
    return code["SVMTrainer"](options, "layer", str(output))


def test_costs_and_precisions_of_svms_are_vissls(tmp_path: Path) -> None:
    """Over three classes, some of whose objects are difficult: absent in training, left out of the test."""
    trainer = vissl_trainer(checkout("vissl", "vissl/utils/svm_utils/svm_trainer.py"), tmp_path)
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(6, 3))
    (rows, labels), (test, truth) = (
        (features, np.where(features @ axes + rng.normal(scale=3, size=(90, 3)) > 1, 1, -1))
        for features in (rng.normal(size=(90, 6)) for _ in range(2))
    )
    for values in (labels, truth):
        values[rng.random(values.shape) < 0.1] = 0
    vissl_labels, vissl_truth = (np.choose(values + 1, (0, -1, 1)) for values in (labels, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        trainer.train(rows, vissl_labels)
        trainer.test(test, vissl_truth)
    protocol = voc07_svm.ProtocolConfig("voc07_svm", 3, COSTS, CenterCropConfig(256, 224))
    unit_rows, unit_test = (
        features / (np.linalg.norm(features, axis=1, keepdims=True) + voc07_svm.LENGTH_FLOOR)
        for features in (rows, test)
    )
    ours = [voc07_svm.fit_and_score(protocol, unit_rows, unit_test, labels[:, cls], truth[:, cls]) for cls in range(3)]
    assert [cost for _, cost in ours] == list(trainer.chosen_cost)
    assert len(set(trainer.chosen_cost)) > 1  # they do not all end at one end of the list
    assert [precision for precision, _ in ours] == pytest.approx(100 * np.load(tmp_path / "layer/test_ap.npy")[:, 0])


def test_the_vote_of_neighbors_is_dinos() -> None:
    code = definitions(checkout("dino", "eval_knn.py") / "eval_knn.py", "knn_classifier", torch=torch, nn=nn)
    torch.manual_seed(0)
    centers = torch.randn(10, 16)
    labels, queried = torch.randint(0, 10, (3000,)), torch.randint(0, 10, (500,))
    bank, queries = (F.normalize(centers[of] + 1.5 * torch.randn(len(of), 16), dim=1) for of in (labels, queried))
    similarity, nearest = neighbors(queries, bank.numpy(), 200)
    ours, _ = vote(similarity, labels[nearest], [20, 200], 0.07, 10)
    for k, predicted in zip((20, 200), ours, strict=True):
        top1, _ = code["knn_classifier"](bank, labels, queries, queried, k, 0.07, 10)
        assert float((predicted == queried).float().mean() * 100) == pytest.approx(top1)
