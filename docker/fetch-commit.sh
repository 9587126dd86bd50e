#!/bin/sh
# fetch-commit.sh REPOSITORY COMMIT FOLDER: fetch only that commit. Its name is the hash of its content, which verifies it.
set -eu
git init --quiet "$3"
git -C "$3" fetch --quiet --depth 1 "$1" "$2"
git -C "$3" checkout --quiet FETCH_HEAD
test "$(git -C "$3" rev-parse HEAD)" = "$2"
