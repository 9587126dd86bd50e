"""The config of a run: its schema, how it is composed, checked and named."""

from reproduce.config.compose import CONF, GLOBAL, Kind, compose, config_hash, identity, options, run_dir, run_id, typed

__all__ = ["CONF", "GLOBAL", "Kind", "compose", "config_hash", "identity", "options", "run_dir", "run_id", "typed"]
