import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, watch, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createLogger } from '../observability/logger.ts'
import { CniManager, type CniManagerOptions } from './manager.ts'
import type { CniStatus } from './status.ts'
import type { CniPod } from './types.ts'

const realPlugins = '/usr/lib/cni'

/** Why tests with real plugins cannot run here, false when they can. */
export const cannotRunPlugins: string | false =
  process.getuid?.() !== 0 ? 'network namespaces need root' : existsSync(join(realPlugins, 'bridge')) ? false : 'the package containernetworking-plugins is not installed'

export const testSignal = (): AbortSignal => AbortSignal.timeout(60_000)

/** Log lines as they were written. */
export interface LogLines {
  readonly lines: string[]
  readonly log: CniManagerOptions['log']
}

export function logLines(): LogLines {
  const lines: string[] = []
  return { lines, log: createLogger('debug', { write: (line: string) => void lines.push(line) }) }
}

/** A directory of its own with a configuration, binary and cache directory; all gone at the end. */
export class Sandbox implements Disposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'cni-test-'))
  readonly confDir = join(this.dir, 'net.d')
  readonly binDir = join(this.dir, 'bin')
  readonly cacheDir = join(this.dir, 'cache')
  readonly managers: CniManager[] = []
  readonly logged = logLines()

  constructor() {
    mkdirSync(this.confDir)
    mkdirSync(this.binDir)
  }

  conf(name: string, content: unknown): string {
    const file = join(this.confDir, name)
    writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content))
    return file
  }

  /** A plugin that is a shell script; `$dir` is this directory. */
  plugin(name: string, script: string): string {
    const file = join(this.binDir, name)
    writeFileSync(file, `#!/bin/sh\ndir='${this.dir}'\n${script}\n`)
    chmodSync(file, 0o755)
    return file
  }

  manager(options: Partial<CniManagerOptions> = {}): CniManager {
    const manager = new CniManager({
      confDir: this.confDir,
      binDirs: [this.binDir],
      maxConfNum: 1,
      cacheDir: this.cacheDir,
      log: this.logged.log,
      debounceMs: 20,
      ...options,
    })
    this.managers.push(manager)
    return manager
  }

  read(name: string): string {
    return readFileSync(join(this.dir, name), 'utf8')
  }

  get cached(): string[] {
    return existsSync(join(this.cacheDir, 'results')) ? readdirSync(join(this.cacheDir, 'results')) : []
  }

  [Symbol.dispose](): void {
    for (const manager of this.managers) void manager.close()
    rmSync(this.dir, { recursive: true, force: true })
  }
}

/**
 * A namespace that plays the node's own network, so that bridges, veths and firewall rules of the tests live and end with it, and namespaces for pods.
 * The plugins are the real ones, entered into it.
 */
export class PrivateHost extends Sandbox {
  readonly #names: Set<string> = new Set()
  readonly host = this.#addNetns()

  constructor() {
    super()
    ip('-n', this.host, 'link', 'set', 'lo', 'up')
    for (const type of readdirSync(realPlugins)) this.plugin(type, `exec nsenter --net=/run/netns/${this.host} ${realPlugins}/${type}`)
  }

  /** A new network namespace for a pod; its path. */
  netns(): string {
    return `/run/netns/${this.#addNetns()}`
  }

  removeNetns(path: string): void {
    ip('netns', 'del', path.slice('/run/netns/'.length))
    this.#names.delete(path.slice('/run/netns/'.length))
  }

  run(...command: string[]): string {
    return execFileSync('ip', ['netns', 'exec', this.host, ...command], { encoding: 'utf8' })
  }

  get veths(): string[] {
    return this.run('ip', '-o', 'link', 'show', 'type', 'veth').split('\n').filter((line) => line !== '')
  }

  /** Addresses that host-local has given out. */
  get leases(): string[] {
    const dirs = existsSync(join(this.dir, 'ipam')) ? readdirSync(join(this.dir, 'ipam')) : []
    return dirs.flatMap((dir) => readdirSync(join(this.dir, 'ipam', dir))).filter((name) => /^[0-9a-f:.]+$/.test(name)).sort()
  }

  bridge(subnets: readonly string[] = ['10.222.71.0/24'], more: Record<string, unknown> = {}): Record<string, unknown> {
    return {
      type: 'bridge',
      bridge: 'crishimtest0',
      isGateway: true,
      ipMasq: true,
      ipam: { type: 'host-local', dataDir: join(this.dir, 'ipam'), ranges: subnets.map((subnet) => [{ subnet, ...more }]), routes: [{ dst: '0.0.0.0/0' }] },
    }
  }

  override [Symbol.dispose](): void {
    for (const name of this.#names) ip('netns', 'del', name)
    super[Symbol.dispose]()
  }

  #addNetns(): string {
    const name = `cnitest-${process.pid}-${randomBytes(3).toString('hex')}`
    ip('netns', 'add', name)
    this.#names.add(name)
    return name
  }
}

export function podIn(netnsPath: string, more: Partial<CniPod> = {}): CniPod {
  return { id: randomBytes(32).toString('hex'), namespace: 'default', name: 'web', uid: 'uid-1', netnsPath, ...more }
}

export function ip(...args: string[]): string {
  return execFileSync('ip', args, { encoding: 'utf8' })
}

/** Resolves with the first status, now or to come, that is as wanted. */
export async function statusWhere(manager: CniManager, what: string, wanted: (status: CniStatus) => boolean): Promise<CniStatus> {
  const found = Promise.withResolvers<CniStatus>()
  const look = (status: CniStatus): void => {
    if (wanted(status)) found.resolve(status)
  }
  const guard = setTimeout(() => found.reject(new Error(`${what}: did not come; it is ${JSON.stringify(manager.status())}`)), 20_000)
  manager.on('statusChanged', look)
  try {
    look(manager.status())
    return await found.promise
  } finally {
    clearTimeout(guard)
    manager.off('statusChanged', look)
  }
}

/** Resolves when a file exists. */
export async function fileExists(path: string): Promise<void> {
  const found = Promise.withResolvers<void>()
  const look = (): void => {
    if (existsSync(path)) found.resolve()
  }
  const watcher = watch(dirname(path), look)
  const guard = setTimeout(() => found.reject(new Error(`${path} did not appear`)), 20_000)
  try {
    look()
    await found.promise
  } finally {
    clearTimeout(guard)
    watcher.close()
  }
}
