#!/usr/bin/env bash
# Runs the tests about Python on the CPythons of Debian sid, 3.14 and 3.15, as `make test` runs
# them on its second Python.
#
#     tools/other-pythons.sh [PYTEST ARGUMENT...]
#     PYTHONS=3.15 tools/other-pythons.sh tests/engine/test_weaving.py
#
# For Debian, as root: it makes a system of its own by debootstrap, which sees this folder and
# /tmp, and nothing of which outlives a run but files. What it makes is used again until
# `make clean`. Of sid there is one day's state at a time: remove the folder for a newer one.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
read -ra versions <<<"${PYTHONS:-3.14 3.15}"
export TREE=$PWD HOME_OF_SID=$PWD/.venv-3.sid
export SID=$HOME_OF_SID/root
if [ "$(id -u)" != 0 ]; then
    echo "$0: has to run as root, since it mounts folders and changes the root: sudo $0 $*" >&2
    exit 2
fi

# The mounts are in a namespace of this one command: nobody else sees them, and whoever removes
# $HOME_OF_SID removes nothing else.
inside() {
    unshare --mount --propagation private bash -euc '
        mkdir -p "$SID$TREE"
        mount --bind "$TREE" "$SID$TREE"
        mount --bind /tmp "$SID/tmp"
        mount --bind /proc "$SID/proc"
        mount --rbind /dev "$SID/dev"
        # The way to package registries is that of this machine.
        for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
            if [ -e "$file" ]; then cp -L "$file" "$SID$file"; fi
        done
        exec chroot "$SID" bash -euc "cd \"\$TREE\"; exec \"\$@\"" bash "$@"
    ' bash "$@"
}

if [ ! -e "$HOME_OF_SID/.has-root" ]; then
    rm -rf "$HOME_OF_SID"
    mkdir -p "$HOME_OF_SID"
    apt-get update -qq
    apt-get install -y -qq debootstrap >"$HOME_OF_SID/apt.log"
    echo "Making a Debian sid; what that prints goes to $HOME_OF_SID/debootstrap.log"
    # What compiles is for packages that have no wheel for these yet; libcurl is mongod's.
    packages=ca-certificates,gcc,libc6-dev,libcurl4t64
    for version in 3.14 3.15; do
        packages+=,python$version,python$version-venv,python$version-dev
    done
    debootstrap --variant=minbase --include="$packages" sid "$SID" \
        http://deb.debian.org/debian >"$HOME_OF_SID/debootstrap.log"
    touch "$HOME_OF_SID/.has-root"
fi
for version in "${versions[@]}"; do
    if [ ! -e "$HOME_OF_SID/$version/.has-test" ]; then
        rm -rf "${HOME_OF_SID:?}/$version"
        inside "python$version" -m venv "$HOME_OF_SID/$version"
        inside "$HOME_OF_SID/$version/bin/python" -m pip install -q --editable '.[test]'
        touch "$HOME_OF_SID/$version/.has-test"
    fi
done
if [ $# = 0 ]; then set -- tests/engine tests/instruments tests/breakpoints; fi
for version in "${versions[@]}"; do
    python=$HOME_OF_SID/$version/bin/python
    echo "== $(inside "$python" --version)"
    inside "$python" -m pytest -q -p no:cacheprovider "$@" || failed="${failed:-} $version"
done
if [ -n "${failed:-}" ]; then
    echo "Failed on:$failed" >&2
    exit 1
fi
