"""Downstream protocols, one per file or folder: a trunk and a dataset in, metrics out.

Each module `evals.<name>` has a dataclass `Protocol` (the keys of its YAML's `protocol:` section) and
`evaluate(trunk, protocol, setting) -> metrics`, percent as percent.
"""
