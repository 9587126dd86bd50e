#!/bin/sh
# Describe the machine on stderr, then run the command.
set -eu
/app/.venv/bin/python -m reproduce.harness.doctor --short >&2 || true
mountpoint -q /app/results || echo "note: results are lost with this container; keep them with -v results:/app/results" >&2
exec "$@"
