"""When the sentinel stops a run, and when it must not."""

import math
from typing import Any

import pytest

from models.methods.base import Method
from reproduce.config import schema
from reproduce.engine.collapse import Sentinel
from reproduce.errors import TrainingFailed, UserError

HEALTHY = {"loss": 3.0, "embedding_spread": 0.8, "prototypes_used": 20.0, "unit_length_error": 1e-6}
PLATEAU = {**HEALTHY, "loss": math.log(60) - 0.001}


def sentinel(on_collapse: str = "stop") -> Sentinel:
    return Sentinel(math.log(60), 10, patience_epochs=2, on_collapse=on_collapse, remedies="method.epsilon=0.03")


@pytest.mark.parametrize(
    ("values", "symptom"),
    [
        (PLATEAU, r"ln K = 4\.094.*method\.epsilon=0\.03"),
        ({**HEALTHY, "embedding_spread": 0.001}, "same embedding"),
        ({**HEALTHY, "prototypes_used": 1.0}, "same prototype"),
    ],
)
def test_each_collapse_stops_the_run_once_patience_is_over(values: dict[str, float], symptom: str) -> None:
    guard = sentinel()
    for step in range(1, 20):
        guard.watch(step, values)
    with pytest.raises(TrainingFailed, match=symptom) as stopped:
        guard.watch(20, values)
    assert stopped.value.status == "collapsed"


def test_a_method_without_prototypes_is_judged_by_its_embeddings() -> None:
    guard = Sentinel(None, steps_per_epoch=10, patience_epochs=2, on_collapse="stop")
    curve = {name: value for name, value in PLATEAU.items() if name != "prototypes_used"}
    for step in range(1, 40):
        guard.watch(step, curve)
    alike = {**curve, "embedding_spread": 0.001}
    for step in range(40, 49):
        guard.watch(step, alike)
    with pytest.raises(TrainingFailed, match=r"same embedding .* try a lower optimizer\.lr, or fewer"):
        guard.watch(49, alike)


def test_scores_that_are_no_cosines_stop_the_run_at_once() -> None:
    with pytest.raises(TrainingFailed, match=r"0\.500 off unit length \(step 1\)"):
        sentinel("warn").watch(1, {**HEALTHY, "unit_length_error": 0.5})


def test_a_healthy_run_and_one_that_left_the_plateau_go_on() -> None:
    guard = sentinel()
    for step in range(1, 60):
        guard.watch(step, PLATEAU if step < 15 else HEALTHY)


def test_one_bad_moment_is_not_an_epoch() -> None:
    guard = sentinel()
    for step in range(1, 60):
        guard.watch(step, PLATEAU if step % 5 == 0 else HEALTHY)


def test_it_is_patient_anew_when_the_queue_starts_and_judges_before() -> None:
    guard = sentinel()
    guard.be_patient(30, epochs=2)
    for step in range(30, 50):
        guard.watch(step, PLATEAU)
    with pytest.raises(TrainingFailed):
        guard.watch(50, PLATEAU)
    later = sentinel()
    later.be_patient(300, epochs=2)
    with pytest.raises(TrainingFailed):
        later.watch(20, PLATEAU)


class Queued(Method):
    uniform_loss, plateau_grace_epochs, loss_jump_step = math.log(60), 1.0, 300

    def loss(self, *_: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("first_step", "patient", "judged"), [(0, range(1, 30), 30), (100, range(100, 110), 110), (0, range(300, 320), 320)]
)
def test_its_patience_is_what_the_method_and_a_restart_ask_for(first_step: int, patient: range, judged: int) -> None:
    settings = schema.Sentinel(patience_epochs=2)
    guard = Sentinel.of(Queued(), settings, steps_per_epoch=10, first_step=first_step)
    for step in patient:
        guard.watch(step, PLATEAU)
    with pytest.raises(TrainingFailed, match="ln K"):
        guard.watch(judged, PLATEAU)


def test_an_unknown_reaction_is_an_error() -> None:
    with pytest.raises(UserError, match="did you mean 'stop'"):
        sentinel("stopp")


def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    guard = sentinel("warn")
    for step in range(1, 60):
        guard.watch(step, PLATEAU)
    assert capsys.readouterr().out.count("warning: the training collapsed") == 1
