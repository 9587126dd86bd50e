"""BoWNet: bags of words, CutMix and loss written out; the vocabulary and the second start after RotNet's epochs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from models.methods.bownet import Bownet, BownetConfig, BownetNet, bag_of_words, cutmix_box
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import UserError

NO_LABELS = torch.zeros(0)
NUM_IMAGES, BATCH, UNREADABLE = 13, 4, 7


def started(**changes: object) -> Bownet:
    """A method whose words begin with the second epoch, of three steps each."""
    torch.manual_seed(0)
    values = {
        "rotation_epochs": 1, "num_words": 6, "stage": 2, "num_vocabulary_features": 13, "num_kmeans_iterations": 5,
        "resize_px": 46, "size_px": 40,
    }  # fmt: skip
    net = BownetNet(0.0625, 6, blocks=(1, 1, 1, 1))
    method = Bownet(BownetConfig("bownet", **{**values, **changes}), net, NUM_IMAGES, BATCH)  # type: ignore[arg-type]
    images = torch.randn(NUM_IMAGES, 3, 40, 40)
    read = torch.tensor([index for index in range(NUM_IMAGES) if index != UNREADABLE])
    method.center_crops = lambda _resize_px, _size_px: [(part, images[part]) for part in read.split(5)]
    method.on_train_start(net, StepSampler(NUM_IMAGES, BATCH, epochs=2, seed=0), [])
    return method


def crop() -> list[Tensor]:
    return [torch.randn(BATCH, 3, 32, 32)]


def test_a_bag_counts_each_of_an_images_words_once() -> None:
    bags = bag_of_words(torch.tensor([[0, 0, 3, 3], [2, 2, 2, 2], [1, 0, 3, 2]]), 5)
    assert bags.tolist() == [[0.5, 0, 0, 0.5, 0], [0, 0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25, 0]]


def test_cutmix_keeps_what_is_outside_of_the_box() -> None:
    shares = []
    for seed in range(200):
        rows, columns, kept = cutmix_box(np.random.default_rng(seed), 32)
        inside = torch.zeros(32, 32)
        inside[rows, columns] = 1
        assert kept == pytest.approx(1 - float(inside.mean()))
        shares.append(kept)
    assert 0.5 < np.mean(shares) < 0.8  # of .5 on average, boxes lose what is beyond the border
    assert min(shares) < 0.2 and max(shares) > 0.9


def test_logits_are_of_unit_weights() -> None:
    net = BownetNet(0.0625, 6, blocks=(1, 1, 1, 1))
    with torch.no_grad():
        net.word_scale.fill_(3)
    features, logits = net(crop())
    expected = 3 * features @ F.normalize(net.words.weight, dim=1).T
    torch.testing.assert_close(logits, torch.cat([net.fc(features), expected], dim=1))


def test_words_follow_the_epochs_of_rotations() -> None:
    method = started()
    initial = {name: value.clone() for name, value in method.net.state_dict().items()}
    optimizer = torch.optim.SGD(method.net.parameters(), lr=0.1, momentum=0.9)
    method.reset_optimizer = optimizer.state.clear
    assert method.loss_jump_step == 3
    for step in range(5):
        views = crop()
        crops = method.before_step(step, views, NO_LABELS)
        if step == 3:
            assert not optimizer.state
            assert all(torch.equal(value, initial[name]) for name, value in method.net.state_dict().items())
            assert method.net.training  # BatchNorm by the batch, although the words were read in evaluation mode
        features, logits = method.net(crops)
        loss, _ = method.loss(features, logits, len(crops), step)
        if step < 3:
            assert len(crops) == 4
            expected = F.cross_entropy(logits[:, :4], torch.arange(4).repeat_interleave(BATCH))
        else:
            assert method.words is not None
            images = torch.from_numpy(method.sampler.indices_at(step))
            bags = bag_of_words(method.words[images].long().clamp_min(0), 6)
            bags[images == UNREADABLE] = 0
            bags = method.kept * bags + (1 - method.kept) * bags[[1, 0, 3, 2]]
            expected = -(bags * logits[:, 4:].log_softmax(dim=1)).sum(dim=1).mean()
            own = (crops[0] == views[0]).all(dim=1).double().mean()
            assert float(own) == pytest.approx(method.kept)
            assert ((crops[0] == views[0]) | (crops[0] == views[0][[1, 0, 3, 2]])).all()
        torch.testing.assert_close(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        assert all(value.grad is not None for value in method.net.parameters())
        optimizer.step()


def test_words_are_the_nearest_clusters_of_the_networks_features(monkeypatch: pytest.MonkeyPatch) -> None:
    method = started()
    clusters = torch.randn(6, 4 * 8)
    monkeypatch.setattr("models.methods.bownet.best_kmeans", lambda *_: type("", (), {"centroids": clusters}))
    words = method._make_words()
    method.net.eval()
    for indices, images in method.center_crops(46, 40):
        places = method.net.local_features(images, 2)
        assert places.shape[1] == 9  # of 5 x 5, without the border
        expected = [pairwise_distances_argmin(each.detach(), clusters) for each in places]
        assert words[indices].tolist() == np.stack(expected).tolist()
    assert words[UNREADABLE].tolist() == [-1] * 9


def test_state_dict_round_trip() -> None:
    method, again = started(), started()
    assert again.state_dict() == {"words": None}
    method.words = method._make_words()
    again.load_state_dict(method.state_dict())
    assert again.words is not None
    assert torch.equal(again.words, method.words)


def test_wrong_sizes_raise() -> None:
    with pytest.raises(UserError, match=r"num_words 14 should be at most .* and the 13 images"):
        started(num_words=14)
