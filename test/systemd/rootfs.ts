import { createHash, randomUUID } from 'node:crypto'
import { access, mkdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { output } from '../fixtures/command.ts'

const suite = 'bookworm'
/** A node as small as it can be: systemd, containerd and what it needs, and the one library that Node.js needs. */
const packages = [
  'systemd', 'systemd-sysv', 'dbus', 'containerd', 'runc', 'containernetworking-plugins', 'iptables', 'iproute2', 'busybox-static', 'ca-certificates', 'libatomic1', 'procps',
]
const dropped = ['./var/cache/apt', './var/lib/apt/lists', './usr/share/doc', './usr/share/man', './usr/share/locale', './usr/lib/udev/hwdb.d', './dev']

/**
 * Puts Debian with systemd and containerd into `dir`. Made once with debootstrap (network, a minute), kept as a tar file under
 * $XDG_CACHE_HOME/cri-shim-test or /var/cache/cri-shim-test, whose name changes with what is in it; it may be deleted at any time.
 */
export async function unpackDebian(dir: string): Promise<void> {
  const cache = join(process.env['XDG_CACHE_HOME'] ?? '/var/cache', 'cri-shim-test')
  const key = createHash('sha256').update(JSON.stringify([suite, packages, dropped, process.arch])).digest('hex').slice(0, 12)
  const archive = join(cache, `debian-${suite}-${key}.tar`)
  if (!await exists(archive)) await makeArchive(cache, archive)
  await mkdir(dir, { recursive: true })
  await output('tar', ['-xpf', archive, '--numeric-owner', '--xattrs', '-C', dir])
  await mkdir(join(dir, 'dev'), { recursive: true })
}

async function makeArchive(cache: string, archive: string): Promise<void> {
  await mkdir(cache, { recursive: true })
  const dir = `${archive}.${randomUUID()}`
  try {
    const mirror = process.env['DEBIAN_MIRROR']
    console.error(`making ${archive} with debootstrap (once; it takes a minute)`)
    await output('debootstrap', ['--variant=minbase', `--include=${packages.join(',')}`, suite, dir, ...(mirror === undefined ? [] : [mirror])]).catch((error: unknown) => {
      throw new Error(`Debian could not be fetched: this needs debootstrap (make setup installs it) and a Debian mirror; another one than deb.debian.org is set with DEBIAN_MIRROR=URL`, { cause: error })
    })
    await output('tar', ['-cf', `${dir}.tar`, '--numeric-owner', '--xattrs', ...dropped.map((path) => `--exclude=${path}`), '-C', dir, '.'])
    await rename(`${dir}.tar`, archive)
  } finally {
    await rm(`${dir}.tar`, { force: true })
    await rm(dir, { recursive: true, force: true })
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(() => true, () => false)
}
