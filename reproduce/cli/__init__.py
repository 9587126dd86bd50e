"""The command line of the harness: `parser` defines it; each `*_command` or `*_commands` module carries out a part."""
