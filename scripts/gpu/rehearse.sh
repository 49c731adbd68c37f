#!/usr/bin/env bash
# Rehearses scripts/gpu/run.sh without a GPU: the tracked files and the archive of scripts/gpu/pack.sh, copied into an empty
# folder, with no network, no Rust, no system Vulkan loader and no sight of this checkout, on a software Vulkan driver
# (mesa-vulkan-drivers) and with PyTorch on the CPU, at a hundredth of the work. Needs root, for namespaces.
#   scripts/gpu/rehearse.sh OUT STAGE=SECONDS... [OPTION OF run.sh]...
# PYTHON names the interpreter that has PyTorch (default: python3).
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
[ -e target/gpu-kit/programs.tar.xz ] || { echo "scripts/gpu/pack.sh comes first" >&2; exit 2; }
python=$(command -v "${PYTHON:-python3}")

# What is to be seen of this checkout: a copy of what git tracks, and the kit.
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
git ls-files -z | tar -c --null -T - -f - | tar -x -C "$tree" -f -
mkdir -p "$tree/target" && cp -r target/gpu-kit "$tree/target"
mkdir "$tree/out"

export tree out python checkout=$PWD
unshare --net --mount --fork --kill-child bash -euc '
  mount --bind "$out" "$tree/out"
  hide() { [ ! -d "$1" ] || mount -t tmpfs tmpfs "$1"; }
  hide "${CARGO_HOME:-$HOME/.cargo}" && hide "${RUSTUP_HOME:-$HOME/.rustup}" && hide "$checkout"
  for loader in /usr/lib/x86_64-linux-gnu/libvulkan.so.1*; do
    [ -h "$loader" ] || [ ! -e "$loader" ] || mount --bind /dev/null "$loader"
  done
  cd "$tree"
  export PATH=${python%/*}:/usr/sbin:/usr/bin:/sbin:/bin OMP_WAIT_POLICY=PASSIVE
  if command -v cargo rustc; then exit 1; fi
  exec scripts/gpu/run.sh out --small --torch-device cpu "$@"
' rehearse "$@"
