#!/usr/bin/env bash
# Usage: test_install.sh BUILD_DIR CONSUMER_DIR WORK_DIR LIBDIR cmake|pkg-config
# Installs BUILD_DIR to a scratch prefix, moves it, and builds and runs the consumer against it.
set -euo pipefail
build=$1 consumer=$2 work=$3 libdir=$4 way=$5

rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$work/staged" >"$work/install.log"
mv "$work/staged" "$work/prefix" # the package must not remember where it was put
cp -r "$consumer" "$work/consumer"
cd "$work/consumer"

case $way in
  cmake)
    cmake -S . -B build -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER="$CXX"
    cmake --build build
    build/consumer
    if [ -x build/gateway ]; then build/gateway; fi
    ;;
  pkg-config)
    export PKG_CONFIG_PATH="$work/prefix/$libdir/pkgconfig"
    pkg-config --print-errors --exists llmd-core
    make
    LD_LIBRARY_PATH="$work/prefix/$libdir" ./consumer
    if pkg-config --exists llmd-gateway; then
      make gateway
      LD_LIBRARY_PATH="$work/prefix/$libdir" ./gateway
    fi
    ;;
esac
if grep -rlF -e "$build" "$work/prefix/$libdir/cmake" "$work/prefix/$libdir/pkgconfig"; then
  echo "the files above name the build directory" >&2
  exit 1
fi
