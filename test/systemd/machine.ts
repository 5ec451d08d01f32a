import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, readFile, readdir, rm, rmdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { type CommandResult, command } from '../fixtures/command.ts'

/** A Debian booted by systemd-nspawn: processes, network and cgroups of its own, the kernel is shared. */
export interface Machine extends AsyncDisposable {
  /** Runs a program inside; a failure is a result. */
  try(name: string, ...args: readonly string[]): Promise<CommandResult>
  /** Its standard output; fails with its standard error. */
  run(name: string, ...args: readonly string[]): Promise<string>
  /** Where a file of the machine, as it is mounted there, is found from outside. */
  path(inside: string): string
  /** Marks the end of the journal, for `untilLogged`. */
  journalCursor(): Promise<string>
  /** Resolves with the first line of the unit's journal after the cursor that matches. Rejects at the deadline with the last lines. */
  untilLogged(unit: string, pattern: RegExp, after: string, timeoutMs?: number): Promise<string>
  /** Shuts the machine down in order; resolves when it is gone. */
  poweroff(): Promise<void>
}

const bootTimeoutMs = 90_000
const poweroffTimeoutMs = 90_000

/**
 * systemd-nspawn mounts version 1 hierarchies read-only, but for systemd's own; runc needs them all. They are in a cgroup namespace, so that
 * the machine reaches its own part of them only.
 */
const writableCgroups = `[Unit]
DefaultDependencies=no
Before=sysinit.target
ConditionPathIsDirectory=/sys/fs/cgroup/memory
[Service]
Type=oneshot
ExecStart=/bin/sh -ec 'for dir in /sys/fs/cgroup/*/; do ! mountpoint -q "$dir" || mount -o remount,bind,rw "$dir"; done'
[Install]
WantedBy=sysinit.target
`

/** Boots the machine whose root file system is in `root`; resolves when multi-user.target is reached. */
export async function bootMachine(root: string): Promise<Machine> {
  const name = `cri-shim-test-${randomUUID().slice(0, 8)}`
  const units = join(root, 'etc/systemd/system')
  await mkdir(join(units, 'sysinit.target.wants'), { recursive: true })
  await writeFile(join(units, 'writable-cgroups.service'), writableCgroups)
  await rm(join(units, 'sysinit.target.wants/writable-cgroups.service'), { force: true })
  await symlink('../writable-cgroups.service', join(units, 'sysinit.target.wants/writable-cgroups.service'))
  const cgroups = await makeCgroups(name)
  // A test that is killed takes the machine with it.
  const child = spawn('/bin/sh', ['-ec', 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec setpriv --pdeathsig TERM systemd-nspawn "$@"', 'sh', ...cgroups, '--',
    '--quiet', '--boot', `--directory=${root}`, `--machine=${name}`, '--register=no', '--keep-unit', '--settings=no', '--private-network', '--capability=all',
    '--console=read-only', '--link-journal=no', '--resolv-conf=off', '--timezone=off',
    'systemd.show_status=1', 'systemd.log_color=0',
  ], { stdio: ['ignore', 'pipe', 'pipe'], detached: true, env: { ...process.env, SYSTEMD_SECCOMP: '0' } })
  const exit = once(child, 'close')
  const end = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGTERM') // an orderly shutdown
      const timer = setTimeout(() => child.kill('SIGKILL'), poweroffTimeoutMs)
      await exit
      clearTimeout(timer)
    }
    await removeCgroups(cgroups)
  }
  try {
    await booted(child)
    const leader = await leaderOf(child)
    return machineOf({ leader, exit, end, child })
  } catch (error) {
    await end()
    throw error
  }
}

interface Parts {
  readonly leader: number
  readonly child: ChildProcess
  readonly exit: Promise<unknown[]>
  readonly end: () => Promise<void>
}

function machineOf({ leader, child, exit, end }: Parts): Machine {
  const inside = (name: string, args: readonly string[]): readonly string[] => ['--target', String(leader), '--mount', '--uts', '--ipc', '--net', '--pid', '--cgroup', '--', name, ...args]
  const attempt: Machine['try'] = async (name, ...args) => command('nsenter', inside(name, args), { timeoutMs: 120_000, env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' } })
  const run: Machine['run'] = async (name, ...args) => {
    const { code, stdout, stderr } = await attempt(name, ...args)
    if (code !== 0) throw new Error(`in the machine: ${name} ${args.join(' ')}: exit code ${code}: ${stderr.trim()}`)
    return stdout
  }
  return {
    try: attempt,
    run,
    path: (path) => `/proc/${leader}/root${path}`,
    async journalCursor() {
      await run('journalctl', '--sync')
      const found = /^-- cursor: (.*)$/m.exec(await run('journalctl', '-n', '1', '--show-cursor', '--output=cat'))?.[1]
      if (found === undefined) throw new Error('the journal is empty')
      return found
    },
    async untilLogged(unit, pattern, after, timeoutMs = 60_000) {
      const follow = spawn('nsenter', inside('journalctl', ['--follow', '--no-tail', '--output=cat', `--unit=${unit}`, `--after-cursor=${after}`]), { stdio: ['ignore', 'pipe', 'inherit'], detached: true })
      const lines: string[] = []
      // nsenter waits for a child of its own: both end.
      const end = (): void => void (follow.pid !== undefined && process.kill(-follow.pid, 'SIGKILL'))
      const timer = setTimeout(end, timeoutMs)
      try {
        for await (const line of createInterface({ input: follow.stdout })) {
          if (pattern.test(line)) return line
          lines.push(line)
        }
      } finally {
        clearTimeout(timer)
        if (follow.exitCode === null && follow.signalCode === null) end()
      }
      throw new Error(`${unit} did not log ${String(pattern)} within ${timeoutMs / 1000} s:\n${lines.slice(-20).join('\n')}`)
    },
    async poweroff() {
      child.kill('SIGTERM') // systemd-nspawn asks the machine's systemd for it
      const timer = setTimeout(() => child.kill('SIGKILL'), poweroffTimeoutMs)
      const [code, signal] = await exit
      clearTimeout(timer)
      if (code !== 0) throw new Error(`the machine did not shut down in order: systemd-nspawn ended with ${String(signal ?? code)}`)
    },
    [Symbol.asyncDispose]: end,
  }
}

async function booted(child: ChildProcess): Promise<void> {
  const lines: string[] = []
  await new Promise<void>((resolve, reject) => {
    const fail = (why: string): void => {
      clearTimeout(timer)
      reject(new Error(`the machine ${why}. Its console:\n${lines.slice(-30).join('\n')}`))
    }
    const timer = setTimeout(() => fail(`was not up after ${bootTimeoutMs / 1000} s`), bootTimeoutMs)
    child.once('error', (error) => fail(`could not be started: ${error.message}`))
    child.once('close', (code, signal) => fail(`ended with ${signal ?? `exit code ${code}`} instead of booting (is systemd-nspawn missing? make setup installs systemd-container)`))
    for (const stream of [child.stdout, child.stderr]) {
      if (stream === null) continue
      createInterface({ input: stream }).on('line', (line) => {
        lines.push(line)
        if (lines.length > 200) lines.shift()
        if (!/Reached target.*multi-user\.target/.test(line)) return
        clearTimeout(timer)
        resolve()
      })
    }
  })
}

/** The machine's process 1: the only child of systemd-nspawn. */
async function leaderOf(child: ChildProcess): Promise<number> {
  const children = (await readFile(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8')).trim().split(' ')
  const leader = Number(children[0])
  if (children.length !== 1 || !(leader > 0)) throw new Error(`systemd-nspawn has the children "${children.join(' ')}" where one is expected`)
  return leader
}

/** A cgroup for the machine in each hierarchy, so that nothing that it makes is beside those of this machine. */
async function makeCgroups(name: string): Promise<readonly string[]> {
  const mounts = (await readFile('/proc/self/mounts', 'utf8')).split('\n').map((line) => line.split(' ')).filter(([, , type]) => type === 'cgroup' || type === 'cgroup2')
  const made: string[] = []
  for (const [, mount = ''] of mounts) {
    const dir = join(mount, name)
    await mkdir(dir)
    made.push(dir)
    if (mount.endsWith('/cpuset')) for (const file of ['cpuset.cpus', 'cpuset.mems']) await writeFile(join(dir, file), await readFile(join(mount, file)))
    if (mount.endsWith('/cpuset')) await writeFile(join(dir, 'cgroup.clone_children'), '1')
  }
  return made
}

/** Removes them, with what was made in them; a process that is still in one is an error. */
async function removeCgroups(dirs: readonly string[]): Promise<void> {
  const remove = async (dir: string): Promise<void> => {
    const entries = await readdir(dir, { withFileTypes: true }).catch(() => [])
    for (const entry of entries) if (entry.isDirectory()) await remove(join(dir, entry.name))
    for (let attempt = 0; ; attempt++) {
      try {
        await rmdir(dir)
        return
      } catch (error) {
        const code = error instanceof Error && 'code' in error ? error.code : undefined
        if (code === 'ENOENT') return
        // The kernel takes a moment to see the end of the last process; there is no event for it in version 1.
        if (code !== 'EBUSY' || attempt >= 200) throw error
        await new Promise((resolve) => setTimeout(resolve, 25))
      }
    }
  }
  for (const dir of dirs) await remove(dir)
}
