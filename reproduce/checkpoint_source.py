"""Where an evaluation's network is from: `checkpoint=` names a released entry, a file, or a run of the same scale."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from models.networks.resnet import ResNet
from models.networks.trunk import Trunk
from models.zoo import entries
from models.zoo.entries import ReleasedWeights, accepted_normalizations, center_crop_overrides
from models.zoo.load import load_projection_head, load_trunk
from reproduce.config.identity import RUN_ID
from reproduce.errors import Unavailable, UserError
from reproduce.system import CONF_DIR


def load_checkpoint_trunk(cfg: DictConfig) -> tuple[Path, Trunk]:
    """Return the file that `checkpoint` names, downloaded if it is released, and the trunk in it."""
    path, trunk = _released_trunk(cfg) if _is_released(cfg) else _own_trunk(cfg)
    trunk.set_normalization(cfg.normalize.mean, cfg.normalize.std)
    return path, trunk


def load_checkpoint_head(cfg: DictConfig) -> nn.Sequential:
    """Return the projection head of the checkpoint, see `load_projection_head`.

    Raises `UserError` if it has none, and `Unavailable` if released weights have none that we can read.
    """
    entry = _entry(cfg) if _is_released(cfg) else None
    path = entries.fetch(entry) if entry else _path(cfg)
    head = load_projection_head(path, entry.layout if entry else None)
    if head is None:
        raise (Unavailable if entry else UserError)(
            f"checkpoint {path} has no projection head, and protocol.features=head evaluates its output: take "
            "eval=knn, which evaluates pooled features"
        )
    return head


def _own_trunk(cfg: DictConfig) -> tuple[Path, Trunk]:
    path = _path(cfg)
    return path, load_trunk(path, depth=cfg.depth, stem=cfg.stem)


def _path(cfg: DictConfig) -> Path:
    if _is_file(cfg):
        return Path(cfg.checkpoint)
    return Path(cfg.paths.results) / cfg.scale / cfg.checkpoint / "checkpoint.pt"


def _entry(cfg: DictConfig) -> ReleasedWeights:
    return entries.get_entry(cfg.checkpoint.removeprefix(entries.PREFIX))


def _released_trunk(cfg: DictConfig) -> tuple[Path, Trunk]:
    """Download and load a released trunk. Raises `UserError` first if it was trained on images prepared otherwise."""
    entry = _entry(cfg)
    accepted = [OmegaConf.load(CONF_DIR / "normalize" / f"{name}.yaml") for name in accepted_normalizations(entry)]
    if cfg.normalize not in accepted:
        raise UserError(f"{cfg.checkpoint} was trained with another normalization: add normalize={entry.normalize}")
    for difference, overrides in center_crop_overrides(entry, cfg.protocol).items():
        needed = [override.lstrip("+").split("=") for override in overrides]
        if any(str(OmegaConf.select(cfg, key)) != value for key, value in needed):
            raise UserError(f"{cfg.checkpoint} was trained on images {difference}: add {' '.join(overrides)}")
    path = entries.fetch(entry)
    trunk = load_trunk(path, entry.layout)
    if isinstance(trunk, ResNet) and trunk.num_features != 2048 * entry.width:
        raise UserError(f"{path} is {trunk.num_features / 2048:g} times as wide as a ResNet-50, not {entry.width:g}")
    return path, trunk


def parent_run_ids(cfg: DictConfig) -> list[str]:
    """Return the id of the run that `checkpoint` names, or [] if it names something else."""
    return [] if _is_file(cfg) or _is_released(cfg) else [cfg.checkpoint]


def _is_released(cfg: DictConfig) -> bool:
    """Return whether `checkpoint` names released weights (models/zoo/released.yaml)."""
    return str(cfg.checkpoint).startswith(entries.PREFIX)


def _is_file(cfg: DictConfig) -> bool:
    """Return whether `checkpoint` names a file (or pipe, or device) rather than a run: it exists, or has a suffix."""
    path = Path(cfg.checkpoint)
    if path.exists():
        return not path.is_dir()
    return bool(path.suffix) and not RUN_ID.fullmatch(cfg.checkpoint)  # a run's name may have dots, too
