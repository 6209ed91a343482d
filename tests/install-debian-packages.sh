#!/bin/sh
# Installs the Debian packages that tests start programs of, where some are missing and this is root on Debian.
# Anywhere else it changes nothing: the tests that need them skip and name them. Called by `make test`.
set -eu
cd "$(dirname "$0")"

command -v dpkg-query >/dev/null || exit 0
missing=""
while read -r package; do
    [ -n "$package" ] || continue
    dpkg-query --show --showformat='${Status}\n' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
done <debian-packages.txt
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "tests that need them will skip; to run them: sudo apt-get install --no-install-recommends$missing" >&2
    exit 0
fi

# Only the programs are wanted: no service of theirs is started on this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # several words are meant
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; }; then
    if [ "${CI:-}" = true ]; then
        exit 1
    fi
    echo "these could not be installed, and tests that need them will skip:$missing" >&2
fi
