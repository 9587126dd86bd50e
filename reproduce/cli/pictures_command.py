"""The command that draws what a network has learned: pictures."""

import argparse

from reproduce.cli.requests import no_finished_pretraining, pretraining_folder
from reproduce.errors import UserError


def draw_pictures(options: argparse.Namespace) -> int:
    """Make the pictures of a finished pretraining, unless its checkpoint has them; return the exit status."""
    from reproduce.harness.report import pictures

    folder = pretraining_folder(options.checkpoint, options.scale)
    if folder is None:
        raise UserError(no_finished_pretraining(options.checkpoint, options.scale))
    pictures.make_pictures([folder], options.scale, options.data or "")
    print(f"pictures: {folder / 'pictures'}; the next report (make report-...) shows them")
    return 0
