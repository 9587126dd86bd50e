"""The commands on data and weights: data-verify, data-prepare, data-shard, fetch-weights."""

import argparse
import sys
from pathlib import Path
from typing import Any

from reproduce.errors import EXIT_USAGE, UserError


def verify_datasets(options: argparse.Namespace) -> int:
    """Report what is missing, unexpected or broken; return 0 if nothing is, else 2."""
    from reproduce.data.prepare import verify

    catalog = _catalog(options)
    fine = verify.verify_datasets(Path(options.data), catalog, options.datasets, options.decode)
    return 0 if fine else EXIT_USAGE


def prepare_datasets(options: argparse.Namespace) -> int:
    """Unpack official archives into the layout that runs read."""
    from reproduce.data.prepare import unpack, verify

    catalog = _catalog(options)
    for dataset in verify.select_datasets(catalog, options.datasets):
        unpack.unpack_dataset(Path(options.archives), Path(options.data), dataset)
    return 0


def shard_datasets(options: argparse.Namespace) -> int:
    """Write datasets as WebDataset shards."""
    from reproduce.data.prepare import verify, write_shards

    catalog = _catalog(options)
    names = options.datasets or [dataset.name for dataset in verify.catalog_datasets(catalog)]
    for dataset in verify.select_datasets(catalog, names):
        write_shards.write_shards(Path(options.data), Path(options.shards), dataset)
    return 0


def fetch_weights(options: argparse.Namespace) -> int:
    """Download public weights, or list them if none is named."""
    from models.zoo import entries

    if not options.names:
        for item in entries.load_entries().values():
            rows = ", ".join(f"{table} {row}" for table, row in item.table_rows.items())
            print(f"{item.name}: {item.status if item.url else 'unavailable'}{f' ({rows})' if rows else ''}")
        return 0
    problems = []
    for item in [entries.get_entry(name.removeprefix(entries.PREFIX)) for name in options.names]:
        try:
            print(f"{item.name}: {entries.fetch(item)}")
        except UserError as error:
            problems.append(str(error))
            print(f"{item.name}: {error}", file=sys.stderr)
    if problems:
        raise UserError(
            f"{len(problems)} of {len(options.names)} checkpoints could not be downloaded; the lines above say why"
        )
    return 0


def _catalog(options: argparse.Namespace) -> Any:
    from reproduce.config.compose import compose

    return compose("pretrain", [f"data={options.data_config}"]).data
