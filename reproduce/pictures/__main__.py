"""Make the pictures of finished pretrainings, in the folder of each.

Usage: python -m reproduce.pictures [--data DIR] RUN_FOLDER...
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from reproduce.engine import checkpoint
from reproduce.engine.distributed.processes import prepare_process
from reproduce.engine.runs.picture_files import write_picture
from reproduce.errors import ArgumentParser, UserError, run_cli
from reproduce.files import read_json
from reproduce.pictures.feature_map import map_of
from reproduce.pictures.sample import compute_sample
from reproduce.pictures.sheets import atlas_picture, map_picture, neighbors_picture

FILES = ("config.yaml", "checkpoint.pt", "result.json")
"""What is read of a run."""


def make_pictures(run_folder: Path, data_root: str = "") -> None:
    """Make the pictures of a finished pretraining's checkpoint, on images of its validation split.

    `data_root` replaces the folder of images that the run's config names. Raises `UserError` if the images or a file of
    the run are missing, or if the checkpoint is not that of the result.
    """
    if missing := [name for name in FILES if not (run_folder / name).is_file()]:
        raise UserError(f"{run_folder} has no {', '.join(missing)}: give the folder of a finished pretraining")
    cfg = OmegaConf.load(run_folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    path = run_folder / "checkpoint.pt"
    sha256 = checkpoint.sha256_of(path)
    if read_json(run_folder / "result.json")["provenance"].get("checkpoint_sha256") != sha256:
        raise UserError(f"{path} is not the checkpoint of the result beside it: run the pretraining again")
    sample = compute_sample(cfg, path, sha256, Path(data_root or cfg.paths.data_root))
    if sample.scores is not None:
        write_picture(run_folder, atlas_picture(sample))
    if points := map_of(sample.features, [sample.class_of(row) for row in range(len(sample.indices))]):
        write_picture(run_folder, map_picture(sample, points))
    write_picture(run_folder, neighbors_picture(sample))  # last: it says that the others are made


def main() -> int:
    """Make the pictures of the command line's runs."""
    prepare_process()
    parser = ArgumentParser(prog="python -m reproduce.pictures", description=__doc__)
    parser.add_argument("--data", default="", help="folder with the images (default: that of each run's config)")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    options = parser.parse_args()
    problems = []
    for folder in options.folders:
        try:
            make_pictures(folder, options.data)
        except UserError as error:
            problems.append(f"{folder.name}: {error}")
    if problems:
        raise UserError("; ".join(problems))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
