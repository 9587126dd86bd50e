#!/bin/sh
# Build an image (FLAVOUR=cpu|cuda) with the pins of versions.env. Variables of your site override them if set: BASE,
# TORCH, TORCH_INDEX, and the mirrors APEX_REPOSITORY and DETECTRON2_REPOSITORY. The commits stay pinned.
# Further options go to `docker build`, e.g. docker/build.sh --target toolkit --tag mine
set -eu
cd "$(dirname "$0")/.."
fail() {
    echo "error: $1" >&2
    exit 2
}
case ${FLAVOUR:=cpu} in
cpu) ;;
cuda)
    [ -z "${TORCH:-}${TORCH_INDEX:-}" ] || fail "TORCH and TORCH_INDEX are for FLAVOUR=cpu: the CUDA image needs PyPI's torch"
    ;;
*) fail "unknown FLAVOUR=$FLAVOUR: use cpu or cuda" ;;
esac
command -v docker > /dev/null || fail "docker is not in PATH: install Docker Engine 20.10 or newer"
commit=$(git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null || true)
case " $* " in
*" --tag "*) ;;
*) set -- "$@" --tag "swav-reproduction:$FLAVOUR" ;;
esac
set -- --build-arg "FLAVOUR=$FLAVOUR" --build-arg "GIT_COMMIT=$commit" "$@"
while IFS= read -r pin; do
    case $pin in
    '' | '#'*) ;;
    *) set -- --build-arg "$pin" "$@" ;;
    esac
done < docker/versions.env
for name in BASE TORCH TORCH_INDEX APEX_REPOSITORY DETECTRON2_REPOSITORY; do
    value=$(printenv "$name" || true)
    if [ -n "$value" ]; then set -- "$@" --build-arg "$name=$value"; fi
done
DOCKER_BUILDKIT=1 exec docker build --file docker/Dockerfile "$@" .
