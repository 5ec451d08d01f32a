#!/bin/sh
# Installs cri-shim: PREFIX/lib/cri-shim (program and its Node.js), PREFIX/bin/cri-shim, the systemd unit and a commented
# /etc/cri-shim/config.toml, each below DESTDIR. A configuration that is there is kept. With --uninstall, removes all but the configuration.
set -eu

cd "$(dirname -- "$0")/.."
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
lib=$DESTDIR$PREFIX/lib/cri-shim
link=$DESTDIR$PREFIX/bin/cri-shim
unit=$DESTDIR${UNITDIR:-/etc/systemd/system}/cri-shim.service
config=$DESTDIR/etc/cri-shim/config.toml

fail() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}
case $PREFIX in /*) ;; *) fail "PREFIX must be an absolute path, not $PREFIX" ;; esac
[ -n "$DESTDIR" ] || [ "$(id -u)" -eq 0 ] || fail "run this as root, or set DESTDIR to a directory of your own"

reload() {
  if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
}

if [ "${1:-}" = --uninstall ]; then
  rm -rf "$lib"
  rm -f "$link" "$unit"
  reload
  printf 'removed %s, %s, %s; kept %s\n' "$lib" "$link" "$unit" "$config"
  exit 0
fi

[ -f deploy/systemd/cri-shim.service ] || fail "deploy/systemd/cri-shim.service is missing in this checkout: git checkout deploy"

# Beside the old tree, then in its place: a service that starts meanwhile finds the one or the other.
new=$lib.new
rm -rf "$new"
mkdir -p "$new" "$(dirname "$link")" "$(dirname "$unit")" "$(dirname "$config")"
cp -R api bin package.json package-lock.json "$new/"
(find src -name '*.ts' ! -name '*.test.ts' -print0 | tar --null -cf - -T -) | tar -xf - -C "$new"
for file in LICENSE README.md; do [ ! -f "$file" ] || cp "$file" "$new/"; done
(cd "$new" && npm ci --ignore-scripts --no-audit --no-fund --omit=dev --include=optional --silent) || fail "npm ci failed in $new; its message is above"
rm -rf "$lib.old"
[ ! -e "$lib" ] || mv "$lib" "$lib.old"
mv "$new" "$lib"
rm -rf "$lib.old"

ln -sfn ../lib/cri-shim/bin/cri-shim "$link"
sed "s#/usr/local/#$PREFIX/#g" deploy/systemd/cri-shim.service > "$unit"
chmod 644 "$unit"
if [ ! -e "$config" ]; then
  "$link" config default > "$config.new"
  mv "$config.new" "$config"
fi
reload
printf 'installed %s\n' "$lib" "$link" "$unit" "$config"
[ -n "$DESTDIR" ] || printf 'start it with: systemctl enable --now cri-shim\n'
