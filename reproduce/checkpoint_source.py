"""Where an evaluation's trunk comes from: `checkpoint=` names a released entry, a file, or a run of the same scale."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from models.networks.resnet import ResNet
from models.zoo import entries
from models.zoo.load import load_trunk
from reproduce.config.compose import CONF_DIR
from reproduce.errors import UserError


def load_checkpoint_trunk(cfg: DictConfig) -> tuple[Path, ResNet]:
    """Return the file that `checkpoint` names, downloaded if it is released, and the trunk in it."""
    if _is_released(cfg):
        return _released_trunk(cfg)
    path = (
        Path(cfg.checkpoint)
        if _is_file(cfg)
        else Path(cfg.paths.results) / cfg.scale / cfg.checkpoint / "checkpoint.pt"
    )
    return path, load_trunk(path)


def _released_trunk(cfg: DictConfig) -> tuple[Path, ResNet]:
    """Download and load a released trunk. Raises `UserError` first if `normalize` differs from its training."""
    entry = entries.get_entry(cfg.checkpoint.removeprefix(entries.PREFIX))
    if cfg.normalize != OmegaConf.load(CONF_DIR / "normalize" / f"{entry.normalize}.yaml"):
        raise UserError(f"{cfg.checkpoint} was trained with another normalization: add normalize={entry.normalize}")
    path = entries.fetch(entry)
    trunk = load_trunk(path, entry.layout)
    if trunk.num_features != 2048 * entry.width:
        raise UserError(f"{path} is {trunk.num_features / 2048:g} times as wide as a ResNet-50, not {entry.width:g}")
    return path, trunk


def parent_run_ids(cfg: DictConfig) -> list[str]:
    """Return the id of the run that `checkpoint` names, or [] if it names something else."""
    return [] if _is_file(cfg) or _is_released(cfg) else [cfg.checkpoint]


def _is_released(cfg: DictConfig) -> bool:
    """Return whether `checkpoint` names released weights (models/zoo/released.yaml)."""
    return str(cfg.checkpoint).startswith(entries.PREFIX)


def _is_file(cfg: DictConfig) -> bool:
    """Return whether `checkpoint` names a file rather than a run: it exists, or has a suffix."""
    path = Path(cfg.checkpoint)
    return path.is_file() or bool(path.suffix)
