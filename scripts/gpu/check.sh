#!/usr/bin/env bash
# Correctness on the GPU at hand: every operator, whole nets, tile identity, variants of convolutions, and `generate`
# beside the CPU's picture. Logs go to the output folder; what has passed is not run again.
#   scripts/gpu/check.sh OUT
set -euo pipefail
out=$(mkdir -p "${1:?usage: check.sh OUT}" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export TESSERA_REQUIRE_GPU=1

stage() {
  local name=$1
  shift
  if [ ! -e "$out/$name.passed" ]; then
    if ! "$@" >"$out/$name.log" 2>&1; then
      printf '%-12s FAILED, see %s\n' "$name" "$out/$name.log"
      return 1
    fi
    touch "$out/$name.passed"
  fi
  printf '%-12s passed\n' "$name"
}

pictures() {
  local device
  for device in gpu cpu; do
    target/release/tessera generate --device "$device" --seed 7 --steps 4 --size 1024x512 --out "$out/$device.png"
  done
  if grep -q 'gpu:0 .*f16' "$out/devices.txt"; then
    target/release/tessera generate --device gpu:0 --precision f16 --seed 7 --steps 4 --size 1024x512 --out "$out/f16.png"
  fi
}

cargo build --release --locked
target/release/tessera devices | tee "$out/devices.txt"
status=0
stage operators cargo test --release --locked --test gpu || status=1
stage variants cargo test --release --locked --lib exec::gpu || status=1
stage shaders cargo test --release --locked --test shaders || status=1
stage engine cargo test --release --locked --test engine gpu || status=1
stage pictures pictures || status=1
exit "$status"
