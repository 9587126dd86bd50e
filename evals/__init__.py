"""Downstream protocols, one per file or folder: a trunk and a dataset in, metrics out.

Each protocol's module `evals.<name>` has a dataclass `ProtocolConfig`, the keys of its YAML's `protocol:` section, and
`evaluate(trunk, protocol, context)`, which returns metrics by name, percentages from 0 to 100. `context`, `features`
and `classifier` are what protocols share.
"""
