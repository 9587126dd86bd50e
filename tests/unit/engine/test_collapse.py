"""When the collapse detector stops a run, and when it must not."""

import math
from typing import Any

import pytest

from models.methods.base import Method
from reproduce.config import schema
from reproduce.engine.collapse import CollapseDetector
from reproduce.errors import TrainingFailed, UserError

HEALTHY = {"loss": 3.0, "embedding_spread": 0.8, "prototypes_used": 20.0, "unit_length_error": 1e-6}
PLATEAU = {**HEALTHY, "loss": math.log(60) - 0.001}


def build_detector(on_collapse: str = "stop") -> CollapseDetector:
    return CollapseDetector(math.log(60), 10, patience_epochs=2, on_collapse=on_collapse, hints="method.epsilon=0.03")


@pytest.mark.parametrize(
    ("values", "symptom"),
    [
        (PLATEAU, r"ln K = 4\.094.*method\.epsilon=0\.03"),
        ({**HEALTHY, "embedding_spread": 0.001}, "same embedding"),
        ({**HEALTHY, "prototypes_used": 1.0}, "same prototype"),
    ],
)
def test_each_symptom_stops_the_run_after_the_patience(values: dict[str, float], symptom: str) -> None:
    detector = build_detector()
    for step in range(1, 20):
        detector.update(step, values)
    with pytest.raises(TrainingFailed, match=symptom) as stopped:
        detector.update(20, values)
    assert stopped.value.status == "collapsed"


def test_without_prototypes_only_the_embeddings_count() -> None:
    detector = CollapseDetector(None, steps_per_epoch=10, patience_epochs=2, on_collapse="stop")
    curve = {name: value for name, value in PLATEAU.items() if name != "prototypes_used"}
    for step in range(1, 40):
        detector.update(step, curve)
    equal = {**curve, "embedding_spread": 0.001}
    for step in range(40, 49):
        detector.update(step, equal)
    with pytest.raises(TrainingFailed, match=r"same embedding .* try a lower optimizer\.lr, or fewer"):
        detector.update(49, equal)


def test_wrong_unit_length_stops_the_run_at_once() -> None:
    with pytest.raises(TrainingFailed, match=r"0\.500 off unit length \(step 1\)"):
        build_detector("warn").update(1, {**HEALTHY, "unit_length_error": 0.5})


def test_a_run_that_leaves_the_plateau_continues() -> None:
    detector = build_detector()
    for step in range(1, 60):
        detector.update(step, PLATEAU if step < 15 else HEALTHY)


def test_single_bad_steps_do_not_stop_the_run() -> None:
    detector = build_detector()
    for step in range(1, 60):
        detector.update(step, PLATEAU if step % 5 == 0 else HEALTHY)


def test_suspend_skips_only_its_own_epochs() -> None:
    detector = build_detector()
    detector.suspend(30, epochs=2)
    for step in range(30, 50):
        detector.update(step, PLATEAU)
    with pytest.raises(TrainingFailed):
        detector.update(50, PLATEAU)
    later_suspended = build_detector()
    later_suspended.suspend(300, epochs=2)
    with pytest.raises(TrainingFailed):
        later_suspended.update(20, PLATEAU)


class Queued(Method):
    uniform_loss, plateau_grace_epochs, loss_jump_step = math.log(60), 1.0, 300

    def loss(self, *_: Any) -> Any:
        raise NotImplementedError


def queued() -> CollapseDetector:
    return CollapseDetector.for_method(Queued(None, None, 0, 0), schema.Collapse(patience_epochs=2), steps_per_epoch=10)


def test_a_run_that_is_often_resumed_stops_where_an_uninterrupted_one_does() -> None:
    uninterrupted, detector = queued(), queued()
    for step in range(1, 57):
        curve = HEALTHY if step < 45 else {**PLATEAU, "images_per_second": float(step)}
        uninterrupted.update(step, curve)
        detector.update(step, curve)
        if step % 3 == 0:  # more often than once an epoch
            saved, detector = detector.state_dict(), queued()
            detector.load_state_dict(saved)
            detector.resumed_at(step)
        assert detector.state_dict() == uninterrupted.state_dict()
        assert "images_per_second" not in str(detector.state_dict())
        if step == 53:
            break
    for each in (uninterrupted, detector):
        with pytest.raises(TrainingFailed, match="ln K"):
            each.update(54, PLATEAU)


@pytest.mark.parametrize(
    ("resumed_at", "suspended", "first_checked"),
    [(0, range(1, 30), 30), (100, range(101, 110), 110), (0, range(300, 320), 320)],
)
def test_for_method_suspends_at_start_resume_and_loss_jump(
    resumed_at: int, suspended: range, first_checked: int
) -> None:
    """The resume is from a checkpoint of an earlier version, which has no metrics of the last epoch."""
    detector = queued()
    detector.resumed_at(resumed_at)
    for step in suspended:
        detector.update(step, PLATEAU)
    with pytest.raises(TrainingFailed, match="ln K"):
        detector.update(first_checked, PLATEAU)


def test_the_charts_begin_to_warn_when_the_checks_begin() -> None:
    """After patience and grace; not after the loss jump at step 300, or what a resumed run waits for."""
    detector = queued()
    detector.resumed_at(100)
    assert detector.thresholds()["first_step"] == 30


def test_unknown_on_collapse_raises() -> None:
    with pytest.raises(UserError, match="did you mean 'stop'"):
        build_detector("stopp")


def test_warns_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    detector = build_detector("warn")
    for step in range(1, 60):
        detector.update(step, PLATEAU)
    assert capsys.readouterr().out.count("warning: the training collapsed") == 1
