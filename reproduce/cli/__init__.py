"""The command line of the harness: `parser` defines it, `commands` and `data_commands` carry it out."""
