"""The task for clouds, read by SkyPilot itself: `make sky-test`, in an environment of its own (SkyPilot is large)."""

from pathlib import Path

import pytest

sky = pytest.importorskip("sky", reason="SkyPilot is not installed here; `make sky-test` has it")
TASK = Path(__file__).parents[2] / "docker" / "skypilot.yaml"


def test_the_task_is_one_of_skypilots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TASK.parents[1])
    task = sky.Task.from_yaml_config(sky.utils.yaml_utils.read_yaml(str(TASK)), env_overrides={"TABLE": "table7"})
    assert task.num_nodes == 1
    assert {name for one in task.resources for name in one.accelerators} == {"A100-80GB", "A100", "H100"}
    assert all(one.use_spot and one.job_recovery["strategy"] == "EAGER_NEXT_REGION" for one in task.resources)
    assert task.envs["TABLE"] == "table7" and set(task.secrets) == {"WANDB_API_KEY"}
    assert task.storage_mounts["/results"].mode is sky.StorageMode.MOUNT_CACHED
    assert 'make "reproduce-$TABLE"' in task.run
