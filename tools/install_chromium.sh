#!/bin/sh
# Finds a Chromium for the tests of the live page, or installs Debian's. Prints where it is.
# CHROMIUM in the environment names another one.
set -eu

find_chromium() {
  for name in ${CHROMIUM:-chromium chromium-browser google-chrome-stable google-chrome}; do
    command -v "$name" && return 0
  done
  return 1
}

find_chromium && exit 0
if [ -n "${CHROMIUM:-}" ]; then
  echo "CHROMIUM names $CHROMIUM, and there is no such program" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "the tests of the live page need a Chromium: install one (Debian: apt-get install chromium)," >&2
  echo "or let CHROMIUM name the one to take" >&2
  exit 1
fi
echo "Installing Chromium for the tests of the live page ..." >&2
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null
find_chromium
