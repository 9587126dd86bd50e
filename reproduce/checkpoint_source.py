"""The trunk that an evaluation is asked to judge: what `checkpoint=` of its config means."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from models.networks.resnet import ResNet
from models.zoo import entries
from models.zoo.load import load_trunk
from reproduce.config.compose import CONF_DIR
from reproduce.errors import UserError


def checkpoint_trunk(cfg: DictConfig) -> tuple[Path, ResNet]:
    """The file that `checkpoint` means - an entry of the zoo, a file, or a run of the same scale - and its trunk."""
    if _is_released(cfg):
        return _released_trunk(cfg)
    given = Path(cfg.checkpoint)
    path = given if _is_file(cfg) else Path(cfg.paths.results) / cfg.scale / cfg.checkpoint / "checkpoint.pt"
    return path, load_trunk(path)


def _released_trunk(cfg: DictConfig) -> tuple[Path, ResNet]:
    """Refuses pixels that the network was not trained to see, before anything is downloaded."""
    entry = entries.entry(cfg.checkpoint.removeprefix(entries.PREFIX))
    if cfg.normalize != OmegaConf.load(CONF_DIR / "normalize" / f"{entry.normalize}.yaml"):
        raise UserError(f"{cfg.checkpoint} was trained on other pixels: give it normalize={entry.normalize}")
    path = entries.fetch(entry)
    trunk = load_trunk(path, entry.layout)
    if trunk.num_features != 2048 * entry.width:
        raise UserError(f"{path} is {trunk.num_features / 2048:g} times as wide as a ResNet-50, not {entry.width:g}")
    return path, trunk


def parents(cfg: DictConfig) -> list[str]:
    """The run that `checkpoint` names, where it names one."""
    return [] if _is_file(cfg) or _is_released(cfg) else [cfg.checkpoint]


def _is_released(cfg: DictConfig) -> bool:
    """Whether `checkpoint` names an entry of the checkpoint zoo."""
    return str(cfg.checkpoint).startswith(entries.PREFIX)


def _is_file(cfg: DictConfig) -> bool:
    """Whether `checkpoint` names a file, rather than a run: it is one, or looks like one."""
    given = Path(cfg.checkpoint)
    return given.is_file() or bool(given.suffix)
