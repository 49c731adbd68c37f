#!/usr/bin/env bash
# Checks, measures and trains on a machine with a GPU, Python and PyTorch, but without Rust and network, from the tracked
# files and what scripts/gpu/pack.sh has built:
#   scripts/gpu/run.sh OUT STAGE=SECONDS... [OPTION]...
# The stages, one after the other in the order given, each within its seconds:
#   check   operators, networks, tiles and f16 on the driver; the picture of seed 7 on the GPU beside the CPU's
#   bench   operators, networks and whole pictures beside PyTorch's, with the card's ceilings
#   train   all networks of a model, on pictures that are drawn on the card
# Options:
#   --torch-device DEVICE   of PyTorch (default: cuda)
#   --config NAME           what is trained (default: scenery-2)
#   --from FILE             weights to begin with (default for scenery and scenery-2: models/scenery.safetensors)
#   --small                 a hundredth of the work: a rehearsal on a machine without a GPU
# OUT gets check.txt, check.png, bench.txt, train.txt, train.png, and weights/ in pieces, which
# `python -m tessera_train join` puts together. What has been found is there at any moment, also when this is stopped or
# killed; the tables are printed at the end once more. The exit code says whether all stages did what they were to.
set -uo pipefail

usage() {
  sed -n 's/^# \{0,1\}//p' "$0" | sed -n '4,13p' >&2
  exit 2
}

torch_device=cuda config=scenery-2 from= small= out= stages=()
while [ $# -gt 0 ]; do
  case $1 in
  --torch-device | --config | --from)
    [ $# -ge 2 ] || usage
    name=${1#--}
    declare "${name//-/_}=$2"
    shift
    ;;
  --small) small=1 ;;
  check=* | bench=* | train=*)
    [[ ${1#*=} =~ ^[1-9][0-9]*$ ]] || usage
    stages+=("$1")
    ;;
  -*) usage ;;
  *)
    [ -z "$out" ] || usage
    out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
    ;;
  esac
  shift
done
[ -n "$out" ] && [ "${#stages[@]}" -gt 0 ] || usage
[ -z "$from" ] || from=$(realpath -e -- "$from") || exit 2
cd "$(dirname "$0")/../.." || exit 2
if [[ $config =~ ^scenery(-2)?$ ]]; then
  from=${from:-models/scenery.safetensors}
fi

work=$(mktemp -d)
exec 3>&1 4>&2 # of the whole, not of a stage
child=
status=0

# Runs a command until it ends or the stage's time is over.
bounded() {
  local left=$((end - SECONDS))
  [ "$left" -gt 0 ] || { echo "not begun, the time is over: $*" && return 124; }
  timeout --kill-after=5 "$left" "$@" &
  child=$!
  wait "$child"
  local code=$?
  child=
  [ "$code" -ne 124 ] || echo "stopped, the time is over: $*"
  return "$code"
}

# The last lines of what was found, for each stage that has begun.
finish() {
  trap - EXIT TERM INT
  exec >&3 2>&4
  [ -z "$child" ] || { kill "$child" 2>/dev/null && wait "$child" 2>/dev/null; }
  for name in check bench train; do
    if [ -e "$out/$name.txt" ]; then
      printf '\n== %s\n' "$name"
      "table_$name"
    fi
  done
  rm -rf "$work"
}
trap finish EXIT
trap 'status=143; exit 143' TERM INT

export TESSERA_GPU_CACHE=$work/cache XDG_RUNTIME_DIR=$work PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/train${PYTHONPATH:+:$PYTHONPATH}
export LD_LIBRARY_PATH=$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

unpack() {
  tar -C "$work" -xJf target/gpu-kit/programs.tar.xz 2>/dev/null ||
    python3 -m tarfile -e target/gpu-kit/programs.tar.xz "$work"
}

# Whether there is a Vulkan driver of a real GPU; in a rehearsal, any.
has_driver() {
  "$work/tessera" devices 2>/dev/null | grep -q "^[* ] gpu:" &&
    { [ -n "$small" ] || ! "$work/tessera" devices | grep -q "^\* cpu"; }
}

# Finds the driver: as it is installed, or where a container's runtime has put it, or by its library alone.
find_driver() {
  has_driver && return
  local file
  for file in /usr/local/nvidia/share/vulkan/icd.d/*.json /usr/share/glvnd/*/vulkan/icd.d/*.json; do
    [ -e "$file" ] || continue
    export VK_DRIVER_FILES=$file
    has_driver && return
  done
  for file in $(find / \( -path /proc -o -path /sys \) -prune -o -name 'lib[EG]*_nvidia.so.0' -print 2>/dev/null); do
    printf '{"file_format_version":"1.0.1","ICD":{"library_path":"%s","api_version":"1.3.0"}}\n' "$file" >"$work/driver.json"
    export VK_DRIVER_FILES=$work/driver.json
    has_driver && return
  done
  unset VK_DRIVER_FILES
  return 1
}

# -- check: as much as the time allows, what matters most first --------------------------------------------------------

check() {
  local first=(operators_equal_the_reference fixtures_match_pytorch tiles_equal_the_whole f16) unit=exec::gpu
  [ -z "$small" ] || first+=(the_gpu_gives_the_cpus_picture) unit=exec::gpu::tests
  export TESSERA_REQUIRE_GPU=1
  [ -n "$small" ] || export TESSERA_REQUIRE_COOPERATIVE=1
  echo adapters | bounded "$work/nets"
  bounded "$work/tessera" devices || status=1
  bounded "$work/gpu-tests" --show-output "${first[@]}" || status=1
  pictures || status=1
  if [ -z "$small" ]; then
    bounded "$work/gpu-tests" --show-output $(printf -- '--skip %s ' "${first[@]}") || status=1
  fi
  bounded "$work/unit-tests" --show-output "$unit" || status=1
}

pictures() {
  local options=(--model models/scenery.safetensors --seed 7) kind
  [ -z "$small" ] || options+=(--size 512x256 --steps 2)
  bounded "$work/tessera" generate "${options[@]}" --device gpu --precision f32 --out "$work/gpu-f32.png" || return
  [ -n "$small" ] || bounded "$work/tessera" generate "${options[@]}" --device gpu --precision f16 --out "$work/gpu-f16.png" || return
  bounded "$work/tessera" generate "${options[@]}" --device cpu --precision f32 --out "$work/cpu-f32.png" || return
  bounded python3 scripts/gpu/pictures.py "$out/check.png" "$work"/{cpu,gpu}-*.png
}

table_check() {
  grep -E '^[* ] (gpu:|cpu)' "$out/check.txt"
  grep -hE '^test .* \.\.\. |^picture |^(stopped|not begun)' "$out/check.txt" | sed -E 's/^test (.*) \.\.\. (.*)$/\2 \1/'
  grep -cE '^skipped:' "$out/check.txt" | sed 's/^/lines that say that something was skipped: /'
}

# -- bench -------------------------------------------------------------------------------------------------------------

bench() {
  local compare=(python3 benches/compare_torch.py --gpu --torch-device "$torch_device" --program "$work/nets" --rounds 1)
  if [ -n "$small" ]; then
    local operators='product|large copy|submit|dispatch|whole 160 160 3 8 16|attention 160 16 32'
    compare+=(--precision f32 --steps 1 --size 512x256 --seconds "$((end - SECONDS - 60))")
    bounded "${compare[@]}" --ceilings --config scenery-2 tiny --only "^($operators|unet|decoder|generate)" || status=1
    bounded "${compare[@]}" --networks --only '^unet' --compile 30 || status=1
    return
  fi
  local operators='product|large copy|submit|dispatch|conv (4096 4096 1|96 96 3 512|512 512 3|24 24 3|96 96 3 128) |whole 384 384|attention'
  compare+=(--precision f16)
  bounded "${compare[@]}" --ceilings --config scenery-2 pdm-2k --only "^($operators|unet|decoder|generate)" --seconds 90 || status=1
  bounded "${compare[@]}" --networks --compile 30 || status=1
}

table_bench() {
  grep -E '^\||^[0-9]+ threads|left out|^(stopped|not begun)' "$out/bench.txt"
}

# -- train -------------------------------------------------------------------------------------------------------------

train() {
  local options=(--config "$config" --device "$torch_device" --out "$out/weights" --samples "$out/train.png" --trial)
  [ -z "$from" ] || options+=(--from "$from")
  # It ends by itself, with a twentieth of the time to spare; the bound is for one that hangs.
  bounded python3 -m tessera_train sprint --seconds "$(((end - SECONDS) * 19 / 20 - 3))" "${options[@]}" || status=1
}

table_train() {
  grep -E '^\||^[0-9]+ scenes|^tessera_train' "$out/train.txt" | tail -n 40
}

# ----------------------------------------------------------------------------------------------------------------------

unpack || exit 1
find_driver || echo "no Vulkan driver of a GPU was found" >&2
for stage in "${stages[@]}"; do
  name=${stage%=*}
  end=$((SECONDS + ${stage#*=}))
  echo "$name, ${stage#*=} s: $out/$name.txt"
  "$name" >"$out/$name.txt" 2>&1
done
exit "$status"
