#!/bin/sh
# Says on stderr what this container runs on, then becomes the command.
set -eu
/app/.venv/bin/python -m reproduce.harness.doctor --short >&2 || true
mountpoint -q /app/results || echo "note: results end with this container; keep them with -v results:/app/results" >&2
exec "$@"
