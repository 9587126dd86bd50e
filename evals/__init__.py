"""Downstream protocols, one per file: a trunk and a dataset in, metrics out.

Each file `evals/<name>.py`, or folder, has a dataclass `Protocol` (the keys of its YAML's `protocol:` section) and
`evaluate(trunk, protocol, setting) -> metrics`, percent as percent.
"""
