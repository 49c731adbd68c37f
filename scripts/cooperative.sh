#!/usr/bin/env bash
# Runs the GPU tests, including those of f16 on cooperative matrices, on the software Vulkan driver of Debian sid (Mesa's
# lavapipe), which has matrices of 8x8. The driver is in a chroot under target/ that is made once. Needs root on Debian.
# Where the archive, the chroot or the driver is not available the script prints "skipped" with the reason and succeeds;
# a failed test is a failure.
#   scripts/cooperative.sh [PART OF A NAME]...   runs the tests, or those with such a part in their names
#   scripts/cooperative.sh prepare               makes the chroot only
# CARGO_FLAGS has other flags of cargo than --release --locked, so that a build of the same flags is used.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-target}/cooperative

skip() {
  echo "skipped: cooperative matrices were not tested: $*"
  exit 0
}

[ "$(id -u)" = 0 ] || skip "a chroot needs root"
command -v apt-get >/dev/null || skip "this is not Debian"
if ! command -v mmdebstrap >/dev/null; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null; } ||
    skip "mmdebstrap can't be installed"
fi

if [ ! -e "$root/complete" ]; then
  # This machine's own mirror. The validity date of a snapshot's package list may have passed.
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)
  rm -rf "$root"
  mkdir -p "$(dirname "$root")"
  timeout 300 mmdebstrap --quiet --variant=apt --include=libvulkan1,mesa-vulkan-drivers,vulkan-tools \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    sid "$root" "${mirror:-http://deb.debian.org/debian}" || { rm -rf "$root"; skip "Debian sid is not available"; }
  touch "$root/complete"
fi
[ "${1:-}" != prepare ] || exit 0

in_chroot() {
  local driver
  driver=$(cd "$root" && echo usr/share/vulkan/icd.d/lvp_icd*.json)
  chroot "$root" /usr/bin/env -C /tree "VK_DRIVER_FILES=/$driver" "$@"
}

# The files that the tests read, where they look for them.
rm -rf "$root/tree" && mkdir -p "$root/tree/tests" "$root/tree/models"
cp -r tests/fixtures "$root/tree/tests"
cp models/scenery.safetensors "$root/tree/models"

in_chroot vulkaninfo 2>/dev/null >"$root/vulkaninfo.txt" || skip "sid's Vulkan driver does not start"
grep -q VK_KHR_cooperative_matrix "$root/vulkaninfo.txt" || skip "sid's Vulkan driver has no cooperative matrices"
sed -n 's/^\s*driverInfo\s*= /driver: /p' "$root/vulkaninfo.txt" | head -n 1

read -ra flags <<<"${CARGO_FLAGS:---release --locked}"
program=$(cargo test "${flags[@]}" --test gpu --no-run --message-format=json |
  sed -n 's|.*"executable":"\([^"]*/gpu-[^"]*\)".*|\1|p')
cp "$program" "$root/gpu-tests"
in_chroot TESSERA_REQUIRE_GPU=1 TESSERA_REQUIRE_COOPERATIVE=1 /gpu-tests --nocapture "$@"
