"""The command that writes a trunk as files that other code loads: export."""

import argparse
from pathlib import Path

import yaml

from models.zoo import entries
from reproduce.cli.requests import no_finished_pretraining, pretraining_folder
from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic

R50_DEPTH, R50_STEM = 50, "7x7"


def export_weights(options: argparse.Namespace) -> int:
    """Write the trunk of a checkpoint, with a card that says what it is; return the exit status."""
    from reproduce.harness.plan.model import REPORTS
    from reproduce.harness.report import model_card
    from reproduce.harness.report.summary import read_verdicts

    checkpoint: str = options.checkpoint
    if checkpoint.startswith(entries.PREFIX):
        entry = entries.get_entry(checkpoint.removeprefix(entries.PREFIX))
        shape = _export(checkpoint, folder := Path("results/export", entry.name))
        card = model_card.of_released(entry, shape)
    elif run := pretraining_folder(checkpoint, options.scale):
        config = yaml.load((run / "config.yaml").read_text(), Loader=yaml.CSafeLoader)
        network = config["network"]
        depth, stem = network.get("depth") or R50_DEPTH, network.get("stem") or R50_STEM
        shape = _export(str(run / "checkpoint.pt"), folder := run / "export", depth, stem)
        card = model_card.of_run(
            config, read_json(run / "result.json"), run, shape, read_verdicts(REPORTS / options.scale, options.scale)
        )
    elif Path(checkpoint).is_file():
        shape = _export(checkpoint, folder := Path("results/export", Path(checkpoint).stem))
        card = model_card.of_file(checkpoint, shape)
    else:
        raise UserError(f"{checkpoint} is no file, and {no_finished_pretraining(checkpoint, options.scale)}")
    write_atomic(folder / "README.md", card)
    print(f"exported: {folder} (trunk.safetensors, trunk.pth, README.md)")
    return 0


def _export(checkpoint: str, folder: Path, depth: int = R50_DEPTH, stem: str = R50_STEM) -> dict[str, object]:
    """Write the files, in a process that has torch; return the trunk's shape. Raises `UserError` if it fails."""
    from reproduce.harness.execute.process_group import run_module

    if error := run_module("reproduce.export", checkpoint, str(folder), str(depth), stem):
        raise UserError(error)
    shape: dict[str, object] = read_json(folder / "trunk.json")
    return shape
