#!/usr/bin/env bash
# Builds a CPython without the GIL from Debian's source, and runs the engine's tests on it.
#
#     tools/free-threaded.sh [PYTEST ARGUMENT...]
#
# For Debian 12 and newer, as root or with sudo. What it makes is used again until `make clean`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=$PWD/.venv-3.13t
source=http://deb.debian.org/debian/pool/main/p/python3.13/python3.13_3.13.5.orig.tar.xz
digest=93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640

if [ ! -e "$home/.has-test" ]; then
    rm -rf "$home"
    mkdir -p "$home/source"
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq build-essential pkg-config curl xz-utils zlib1g-dev libssl-dev \
        libffi-dev libsqlite3-dev >"$home/apt.log"
    curl -sSf "$source" -o "$home/source.tar.xz"
    sha256sum --quiet -c <<<"$digest $home/source.tar.xz"
    tar -xJf "$home/source.tar.xz" -C "$home/source" --strip-components=1
    echo "Building; what that prints goes to $home/build.log"
    (cd "$home/source" && ./configure --disable-gil --prefix="$home/python" &&
        make -j"$(nproc)" && make install) >"$home/build.log" 2>&1
    "$home/python/bin/python3" -m venv "$home"
    # Later ones of hypothesis have parts in Rust, and no wheel for this Python.
    "$home/bin/python" -m pip install -q --editable '.[test]' 'hypothesis<6.130'
    touch "$home/.has-test"
fi
# Extensions that do not say that they can do without the GIL would switch it on.
export PYTHON_GIL=0
if [ $# != 0 ]; then exec "$home/bin/python" -m pytest -q "$@"; fi
# One process for each file: code is never freed, and each collection goes over all that is kept.
for file in tests/{engine,instruments,specs,breakpoints}/test_*.py; do
    echo "== $file"
    "$home/bin/python" -m pytest -q "$file" || failed=1
done
exit "${failed:-0}"
