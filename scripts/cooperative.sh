#!/usr/bin/env bash
# The GPU tests, those of f16 on cooperative matrices with them, where no GPU has any: on the software Vulkan driver of
# Debian sid (Mesa's lavapipe), which has matrices of 8x8, in a chroot under target/ that is made once. Needs root, on
# Debian; where the archive, the chroot or the driver's cooperative matrices are not to be had it says so and succeeds. A
# test that fails is a failure.
#   scripts/cooperative.sh [NAME OF TESTS]
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
  # The mirror that this machine uses; a dated one has a list of sid that has run out.
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)
  rm -rf "$root"
  mkdir -p "$(dirname "$root")"
  timeout 300 mmdebstrap --quiet --variant=apt --include=libvulkan1,mesa-vulkan-drivers,vulkan-tools \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    sid "$root" "${mirror:-http://deb.debian.org/debian}" || { rm -rf "$root"; skip "Debian sid can't be had"; }
  touch "$root/complete"
fi

in_chroot() {
  local driver
  driver=$(cd "$root" && echo usr/share/vulkan/icd.d/lvp_icd*.json)
  chroot "$root" /usr/bin/env "VK_DRIVER_FILES=/$driver" "$@"
}

in_chroot vulkaninfo 2>/dev/null >"$root/vulkaninfo.txt" || skip "sid's Vulkan driver does not start"
grep -q VK_KHR_cooperative_matrix "$root/vulkaninfo.txt" || skip "sid's Vulkan driver has none"
sed -n 's/^\s*driverInfo\s*= /driver: /p' "$root/vulkaninfo.txt" | head -n 1

program=$(cargo test --release --locked --test gpu --no-run --message-format=json |
  sed -n 's|.*"executable":"\([^"]*/gpu-[^"]*\)".*|\1|p')
cp "$program" "$root/gpu-tests"
# Where the tests look for them.
rm -rf "${root:?}$PWD" && mkdir -p "$root$PWD/tests" && cp -r tests/fixtures "$root$PWD/tests"
in_chroot TESSERA_REQUIRE_GPU=1 TESSERA_REQUIRE_COOPERATIVE=1 /gpu-tests --nocapture "$@"
