import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { type TarEntry, directory, file, hardlink, symlink } from './tar.ts'

const candidates = ['/usr/bin/busybox', '/bin/busybox']

/** Debian's static busybox. Rejects, naming the package, when it is missing or needs shared libraries, which an image does not have. */
async function findBusybox(): Promise<{ path: string; data: Buffer }> {
  for (const path of candidates) {
    const data = await readFile(path).catch(() => undefined)
    if (data === undefined) continue
    if (data.includes('/lib64/ld-linux') || data.includes('/lib/ld-linux')) {
      throw new Error(`${path} is not the static build, the test images need it: apt-get install busybox-static`)
    }
    return { path, data }
  }
  throw new Error('no busybox on this machine, the test images are made from it: apt-get install busybox-static')
}

/**
 * A shell that starts programs from the file system, as a user's image has it. Debian's build prefers its own applets to files: `ls` would
 * then run although the runtime masked /bin/ls, and a `sleep` would be called `busybox`. The names in this copy's applet table are
 * spoilt (same length, same order for the lookup), all but `sh`, so that nothing is found there.
 */
function shellWithoutApplets(busybox: Buffer, applets: readonly string[]): Buffer {
  const table = Buffer.from(`${applets.join('\0')}\0`)
  const at = busybox.indexOf(table)
  if (at === -1 || busybox.indexOf(table, at + 1) !== -1) {
    throw new Error('the applet table of this busybox is not where it was expected: its names should stand in it once, in the order of `busybox --list`')
  }
  const spoilt = applets.map((name) => (name.length < 2 || name === 'sh' ? name : `${name.slice(0, -1)}\x7f`))
  const shell = Buffer.from(busybox)
  Buffer.from(`${spoilt.join('\0')}\0`).copy(shell, at)
  return shell
}

/** What Debian's busybox lacks and the conformance specs run. */
const scripts: Readonly<Record<string, string>> = {
  pgrep: `#!/bin/sh
# pgrep NAME: the processes whose name contains NAME, this script and its parent shell aside
found=1
for dir in /proc/[0-9]*; do
  pid=\${dir#/proc/}
  [ "$pid" = "$$" ] && continue
  read -r name < "$dir/comm" || continue
  case "$name" in *"$1"*) echo "$pid"; found=0 ;; esac
done 2>/dev/null
exit $found
`,
  ipcs: `#!/bin/sh
# ipcs -m: the shared memory segments of this IPC namespace
echo '------ Shared Memory Segments --------'
echo 'key        shmid      owner      perms      bytes      nattch'
awk 'NR > 1 { printf "0x%08x %-10s %-10s %-10s %-10s %s\\n", $1, $2, $8, $3, $4, $7 }' /proc/sysvipc/shm
`,
}

/** The user and group files of the images. www-data and the group 1004 are named by the conformance images. */
const passwd = 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n'
const group = 'root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n'

/** The entries of a root file system like that of the busybox image, for the architecture of this machine. */
export async function busyboxRootfs(): Promise<readonly TarEntry[]> {
  const { path, data } = await findBusybox()
  const { stdout } = await promisify(execFile)(path, ['--list'])
  const applets = stdout.trim().split('\n')
  const linked = applets.filter((name) => name !== 'busybox' && name !== 'sh' && scripts[name] === undefined)
  return [
    ...['bin', 'dev', 'etc', 'home', 'proc', 'sys', 'usr', 'usr/bin', 'usr/sbin', 'usr/share', 'var', 'var/log', 'var/run', 'var/www'].map((name) => directory(name)),
    directory('root', 0o700),
    directory('tmp', 0o1777),
    file('etc/passwd', passwd),
    file('etc/group', group),
    file('bin/busybox', data, 0o755),
    ...linked.map((name) => hardlink(`bin/${name}`, 'bin/busybox', 0o755)),
    file('bin/sh', shellWithoutApplets(data, applets), 0o755),
    ...Object.entries(scripts).map(([name, script]) => file(`bin/${name}`, script, 0o755)),
    symlink('usr/bin/env', '/bin/env'),
  ]
}

/** The user and group files with entries added, as a layer over the root file system. */
export const accounts = (users: string, groups: string): readonly TarEntry[] => [file('etc/passwd', passwd + users), file('etc/group', group + groups)]
