#!/usr/bin/env bash
# Makes Chromium and its WebDriver available, for the tests of the pairing page: uses what is there, else installs the
# distribution's packages on Debian (as root or with passwordless sudo), else says what to install.
#
# It may be run again at any time. CHROMIUM and CHROMEDRIVER name the programs where they are not on the PATH.
set -euo pipefail

say() { printf 'browser: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
found() { [ -n "${1:-}" ] && [ -x "$1" ]; }

has_browser() { found "${CHROMIUM:-}" || have chromium || have chromium-browser || have google-chrome; }
has_driver() { found "${CHROMEDRIVER:-}" || have chromedriver || found /usr/lib/chromium/chromedriver; }
if has_browser && has_driver; then exit 0; fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then as_root=(sudo -n); else as_root=(false); fi
fi
# The odd expansion keeps an empty array legal under `set -u` in old shells.
root() { ${as_root[@]+"${as_root[@]}"} "$@"; }

if have apt-get && root true; then
    say "installing the packages chromium and chromium-driver"
    export DEBIAN_FRONTEND=noninteractive
    install() { root apt-get install -y --no-install-recommends chromium chromium-driver >&2; }
    # The lists of a fresh container are empty, and those of an old one out of date.
    install || { root apt-get update >&2 && install; } || true
    if has_browser && has_driver; then exit 0; fi
fi

say "error: Chromium or its driver is missing. Install both, the same version of either:"
say "  Debian:  apt-get install chromium chromium-driver"
say "  Fedora:  dnf install chromium chromedriver"
say "  Arch:    pacman -S chromium"
say "  macOS:   brew install --cask chromium chromedriver"
say "or name the programs: CHROMIUM=/path/to/chromium CHROMEDRIVER=/path/to/chromedriver"
exit 1
