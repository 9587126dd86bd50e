"""Which data the paper's numbers were measured on: the official data sets of conf/data/standard.yaml."""

from functools import cache

import yaml

from reproduce.system import CONF_DIR

STANDARD = CONF_DIR / "data/standard.yaml"


@cache
def paper_data_sources() -> dict[str, str]:
    """Return the source of the paper's images by the data set's name, such as imagenet: ILSVRC2012."""
    config = yaml.load(STANDARD.read_text(), Loader=yaml.CSafeLoader)
    return {name: dataset["source"] for name, dataset in config.items() if name != "name"}
