"""The config of a run: `schema` defines it, `compose` builds it, `validate` checks it, `identity` names the run."""
