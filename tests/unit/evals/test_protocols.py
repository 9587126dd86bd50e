"""The evaluations' cores against independent calculations."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from evals import knn, voc07_svm
from evals.classifier import topk_correct
from evals.context import CenterCropConfig
from evals.features import FeatureStore
from evals.knn import neighbors, vote
from evals.linear import LinearProbe, ProtocolConfig, learning_rate
from evals.voc07_svm import average_precision, select_cost
from models.networks.resnet import ResNet
from reproduce.config.compose import compose
from reproduce.errors import UserError
from reproduce.evaluate import evaluate


@pytest.mark.parametrize(("name", "hint"), [("knnn", "did you mean 'knn'"), ("context", "")])
def test_unknown_protocol_raises(name: str, hint: str) -> None:
    cfg = compose("evaluate", ["eval=knn", "checkpoint=x", f"protocol.name={name}"])
    with pytest.raises(UserError, match=rf"unknown protocol\.name '{name}': {hint}"):
        evaluate(cfg, None, None)  # type: ignore[arg-type]


def test_features_without_a_readable_image_raise(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "me")
    with pytest.raises(UserError, match=r"none of the images can be decoded; the first: a\.jpg \(cut\)"):
        store.write({"of": "nothing"}, [], ["a.jpg (cut)", "b.jpg (cut)"])
    assert store.find({"of": "nothing"}) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_features_that_are_not_finite_raise(tmp_path: Path, value: float) -> None:
    """Also those whose length is not: divided by it, all would be zero."""
    rows = torch.ones(3, 4)
    rows[1, 2] = value
    with pytest.raises(UserError, match="features of this checkpoint, or their lengths, are NaN or infinite"):
        FeatureStore(tmp_path, "me").write({}, [(torch.arange(3), rows)], [])


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_knn_votes_equal_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks the bank comes in, whatever lengths its rows have."""
    monkeypatch.setattr(knn, "BANK_BLOCK_BYTES", block * 5 * 4)
    torch.manual_seed(0)
    queries, bank = F.normalize(torch.randn(300, 5), dim=1), 3 * torch.randn(60, 5).numpy()
    labels = torch.randint(0, 4, (60,))
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    found, rows = neighbors(queries, bank, 200)
    assert found.shape == rows.shape == (300, 60)
    ours, _ = vote(found, labels[rows], [3, 20, 200], 0.07, 4)
    for number, query in enumerate(queries.numpy()):
        similarity = unit @ query
        order = np.argsort(-similarity)
        assert rows[number].tolist() == order.tolist()
        assert found[number].numpy() == pytest.approx(similarity[order], abs=1e-6)  # fp32, another order of sums
        for k, got in zip((3, 20, 200), ours[:, number].tolist(), strict=True):
            weights = np.zeros(4)
            for neighbour in order[:k]:
                weights[labels[neighbour]] += np.exp(similarity[neighbour] / 0.07)
            assert got == weights.argmax()


def test_average_precision_by_hand() -> None:
    # Ranked: hit, miss, hit, hit. Precision at the hits 1, 2/3, 3/4; made non-increasing from the right: 1, 3/4, 3/4.
    truth, scores = np.array([True, False, True, True]), np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(truth, scores) == pytest.approx((1 + 0.75 + 0.75) / 3)


def test_average_precision_is_no_lower_than_the_area_without_the_envelope() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, scores = rng.random(50) < 0.3, rng.random(50)
        plain = average_precision_score(truth, scores)
        assert plain <= average_precision(truth, scores) <= plain + 0.15


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_is_scikit_learns_own_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = rng.random(90) < 0.4
    rows = rng.normal(size=(90, 6)) + present[:, None] * 0.5
    costs = [0.01, 0.1, 1.0, 10.0]
    search = GridSearchCV(
        LinearSVC(class_weight={True: 2, False: 1}, dual=True, max_iter=2000, random_state=0),
        {"C": costs},
        scoring="average_precision",
        cv=StratifiedKFold(3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(rows, present)
    assert select_cost(rows, present, costs, 3) == search.best_params_["C"]


def test_costs_are_compared_by_scikit_learns_average_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two costs whose order the envelope of VOC's metric turns round: .500 and .476 with it, .411 and .476 without."""
    truth = np.array([1, 0, 1, 0, 0, 1, 0, 0], dtype=bool)
    scores = {0.1: [2, 1, 3, 6, 0, 5, 4, 7], 1.0: [4, 7, 6, 5, 0, 1, 2, 3]}
    assert [average_precision(truth, np.array(of)) for of in scores.values()] == pytest.approx([0.5, 0.476], abs=1e-3)

    class Scored:
        """Stands for a fitted SVM: gives each held-out row the score of its position in the whole set."""

        def __init__(self, cost: float) -> None:
            self.cost = cost

        def decision_function(self, rows: np.ndarray) -> np.ndarray:
            return np.array(scores[self.cost])[rows[:, 0].astype(int)]

    class EveryRow:
        """Stands for the folds: one, of all rows."""

        def __init__(self, _: int) -> None:
            pass

        def split(self, rows: np.ndarray, _: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(np.arange(len(rows)), np.arange(len(rows)))]

    monkeypatch.setattr(voc07_svm, "fit_svm", lambda _rows, _present, cost: Scored(cost))
    monkeypatch.setattr(voc07_svm, "StratifiedKFold", EveryRow)
    assert select_cost(np.arange(8.0)[:, None], truth, [0.1, 1.0], 1) == 1.0


def test_the_test_split_is_scored_by_vocs_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SVM that returns its feature, on numbers for which VOC's and scikit-learn's precisions differ."""

    class Scored:
        def decision_function(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, 0]

    protocol = voc07_svm.ProtocolConfig("voc07_svm", num_folds=3, costs=[1.0], center_crop=CenterCropConfig(64, 64))
    truth, scores = np.array([1, -1, 1, -1, -1, 1, -1, -1]), np.array([2.0, 1, 3, 6, 0, 5, 4, 7])
    monkeypatch.setattr(voc07_svm, "fit_svm", lambda *_: Scored())
    monkeypatch.setattr(voc07_svm, "select_cost", lambda *_: 1.0)
    found, _ = voc07_svm.fit_and_score(protocol, scores[:, None], scores[:, None], truth, truth)
    assert found == pytest.approx(50)  # all three are among the first six: 3 / 6, which no earlier cut exceeds
    assert average_precision_score(truth == 1, scores) == pytest.approx(0.411, abs=5e-4)


def test_a_class_that_is_only_difficult_is_absent_in_training_and_not_scored_in_the_test() -> None:
    protocol = voc07_svm.ProtocolConfig(
        "voc07_svm", num_folds=3, costs=[0.1, 1.0], center_crop=CenterCropConfig(64, 64)
    )
    rng = np.random.default_rng(0)
    rows, test = rng.normal(size=(60, 4)), rng.normal(size=(40, 4))
    labels, truth = (np.where(x[:, 0] + x[:, 1] > 0.4, 1, -1) for x in (rows, test))
    labels[::7], truth[::3] = 0, 0
    found = voc07_svm.fit_and_score(protocol, rows, test, labels, truth)
    assert found == voc07_svm.fit_and_score(
        protocol, rows, test[truth != 0], np.where(labels == 0, -1, labels), truth[truth != 0]
    )
    assert found[0] < 100


@pytest.mark.parametrize("other", range(4))
def test_a_stored_precision_is_of_the_same_features_and_labels_of_both_splits(tmp_path: Path, other: int) -> None:
    arrays = [np.zeros((3, 2)), np.ones((3, 20)), np.zeros((4, 2)), np.ones((4, 20))]
    voc07_svm.ClassResultCache(tmp_path, tuple(arrays)).put(7, 61.5, 0.25)
    assert voc07_svm.ClassResultCache(tmp_path, tuple(arrays)).get(7) == (61.5, 0.25)
    arrays[other] = arrays[other] - 1
    assert voc07_svm.ClassResultCache(tmp_path, tuple(arrays)).get(7) is None


def test_topk_correct() -> None:
    logits = torch.eye(7)[:3] + torch.arange(7) * 0.01
    assert topk_correct(logits, torch.tensor([0, 6, 1])).tolist() == [1, 2]


def test_schedules_of_the_paper() -> None:
    places = ProtocolConfig(
        "linear", 28, 256, 256, 0.01, 0.9, 1e-4, "steps", [0.25, 0.5, 0.75], CenterCropConfig(256, 224)
    )
    rates = [learning_rate(places, epoch) for epoch in range(28)]
    drops = [epoch for epoch in range(1, 28) if rates[epoch] < rates[epoch - 1]]
    assert drops == [7, 14, 21]
    assert rates[-1] == pytest.approx(1e-5)
    imagenet = ProtocolConfig("linear", 100, 256, 256, 0.3, 0.9, 1e-6, "cosine", [], CenterCropConfig(256, 224))
    assert [learning_rate(imagenet, epoch) for epoch in (0, 50)] == pytest.approx([0.3, 0.15])


@pytest.mark.parametrize("features", [2048, 4096, 8192, 10240])
def test_a_linear_classifier_fits_every_width_and_leaves_the_trunk_alone(features: int) -> None:
    """R50-w5's 10,240 features included, which the released code cannot evaluate."""
    with torch.device("meta"):
        trunk = ResNet(features / 2048)
        probe = LinearProbe(trunk, torch.nn.Linear(trunk.num_features, 1000))
        assert probe(torch.empty(2, 3, 64, 64)).shape == (2, 1000)
    assert probe.classifier.in_features == features
    probe.train()
    assert not any(module.training for module in trunk.modules())
    assert probe.classifier.training
    assert [name for name, value in probe.named_parameters() if value.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_all_points_by_hand_and_not_eleven() -> None:
    # Ranked: hit, miss, miss, hit, miss. Recall 1/2 at precision 1, recall 1 at precision 1/2.
    truth, scores = np.array([True, False, False, True, False]), np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    every_point = 1 / 2 * 1 + 1 / 2 * 1 / 2
    eleven_points = (6 * 1 + 5 * 1 / 2) / 11  # recalls 0 to .5 see precision 1, recalls .6 to 1 see 1/2
    assert average_precision(truth, scores) == pytest.approx(every_point)
    assert abs(every_point - eleven_points) > 0.02


def test_average_precision_equals_brute_force_over_every_recall() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        truth, scores = rng.random(40) < 0.4, rng.random(40)
        ranked = truth[np.argsort(-scores)]
        area, hits = 0.0, 0
        for number in range(40):
            if ranked[number]:
                hits += 1
                area += max(ranked[: end + 1].mean() for end in range(number, 40)) / truth.sum()
        assert average_precision(truth, scores) == pytest.approx(area)
