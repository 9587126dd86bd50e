"""A run's result has the name that the run started with."""

from pathlib import Path

from reproduce.config.compose import compose
from reproduce.engine.runs.run import run_context
from reproduce.files import read_json


def test_result_keeps_the_runs_name_if_the_checkpoint_file_is_deleted_meanwhile(tmp_path: Path) -> None:
    """The file may be another run's, which keeps only its last two checkpoints."""
    checkpoint = tmp_path / "checkpoint-00000010.pt"
    checkpoint.write_bytes(b"weights")
    request = ["eval=knn", f"checkpoint={checkpoint}", f"paths.results={tmp_path}", "logging.wandb=false"]
    with run_context(compose("evaluate", request)) as run:
        checkpoint.unlink()
        run.finish({"knn20": 50.0})
    result = read_json(run.folder / "result.json")
    assert result["run_id"] == run.folder.name
    assert run.folder.name.endswith(f"-{result['provenance']['config_hash'][:10]}")
