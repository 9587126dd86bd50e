#!/bin/sh
# Builds an image (FLAVOUR=cpu|cuda) with the pins of versions.env. BASE and TORCH_INDEX, where set, replace its own;
# more options of `docker build` may follow: docker/build.sh --target toolkit --tag mine
set -eu
cd "$(dirname "$0")/.."
commit=$(git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null || true)
set -- --build-arg "FLAVOUR=${FLAVOUR:=cpu}" --build-arg "GIT_COMMIT=$commit" --tag "swav-reproduction:$FLAVOUR" "$@"
while IFS= read -r pin; do
    case $pin in
    '' | '#'*) ;;
    *) set -- --build-arg "$pin" "$@" ;;
    esac
done < docker/versions.env
for name in BASE TORCH_INDEX; do
    value=$(printenv "$name" || true)
    if [ -n "$value" ]; then set -- "$@" --build-arg "$name=$value"; fi
done
DOCKER_BUILDKIT=1 exec docker build --file docker/Dockerfile "$@" .
