import assert from 'node:assert/strict'
import { constants } from 'node:os'
import { describe, it } from 'node:test'
import type { Containerd } from '../containerd/containerd.ts'
import { Code, CriError, notFound } from '../errors/cri-error.ts'
import { MountPropagation, type Mount } from '../generated/cri.ts'
import { backgroundCtx, type Ctx, withSignal } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import type { Image } from '../state/records.ts'
import type { ContainerHost } from './deps.ts'
import { meetsLeftOver } from './cut-off-start.ts'
import { exitReason } from './exit.ts'
import { ImageUsers } from './image-users.ts'
import { containerLogPath } from './log-path.ts'
import { imageVolumes, resolveMounts } from './mounts.ts'
import { startFailure } from './start-container.ts'
import { signalNumber } from './stop-container.ts'

const base = backgroundCtx(createLogger('fatal'), 'test')
const code = (expected: number) => (error: unknown): boolean => error instanceof CriError && error.code === expected

describe('signals', () => {
  it('are known by name in any case, with and without SIG, by number and relative to the real-time ones', () => {
    for (const [name, number] of Object.entries(constants.signals)) {
      for (const spelled of [name, name.slice(3), name.toLowerCase(), String(number)]) assert.equal(signalNumber(spelled), number, spelled)
    }
    for (let offset = 0; offset <= 30; offset++) {
      assert.equal(signalNumber(`SIGRTMIN+${offset}`), 34 + offset)
      assert.equal(signalNumber(`rtmax-${offset}`), 64 - offset)
    }
    assert.deepEqual(['SIGRTMIN', 'RTMAX', 'SIGCLD', '64'].map(signalNumber), [34, 64, 17, 64])
  })

  it('that are none are refused', () => {
    for (const name of ['', '0', '65', '-1', '1.5', '1e1', 'SIG', 'SIGSIGTERM', 'SIGRTMIN-1', 'SIGRTMAX+1', 'SIGRTMIN+31', 'SIGRTMIN+-1', 'TERM ', 'constructor', '__proto__', 'SIG__proto__', 'a'.repeat(1000)]) {
      assert.throws(() => signalNumber(name), code(Code.INVALID_ARGUMENT), name.slice(0, 20))
    }
  })
})

describe('log paths', () => {
  it('never leave the log directory', () => {
    const parts = ['..', '.', 'a', '', '...', 'a..', 'b.log', '../..', '\\..']
    let seed = 9
    const next = (below: number): number => (seed = (seed * 48_271) % 0x7fffffff) % below
    let taken = 0
    for (let round = 0; round < 3000; round++) {
      const path = Array.from({ length: 1 + next(5) }, () => parts[next(parts.length)]).join('/')
      let found
      try {
        found = containerLogPath('/var/log/pods/p', path)
      } catch (error) {
        assert.ok(code(Code.INVALID_ARGUMENT)(error), path)
        continue
      }
      if (path === '') assert.equal(found, undefined)
      else {
        assert.ok(found?.startsWith('/var/log/pods/p/') && !found.endsWith('/') && !found.split('/').includes('..'), `${path} → ${found}`)
        taken += 1
      }
    }
    assert.ok(taken > 100)
  })

  it('are none without a directory or a name, and refused when they are absolute or hold NUL', () => {
    assert.equal(containerLogPath('', 'a'), undefined)
    assert.equal(containerLogPath('/d', ''), undefined)
    for (const [dir, path] of [['/d', '/etc/passwd'], ['/d', 'a\0b'], ['d', 'a'], ['/d', '..'], ['/d', 'a/..'], ['/d', 'a/']] as const) assert.throws(() => containerLogPath(dir, path), code(Code.INVALID_ARGUMENT), path)
  })
})

describe('reasons', () => {
  it('are the words that Kubernetes knows', () => {
    assert.deepEqual([exitReason(0, false), exitReason(3, false), exitReason(137, true)], ['Completed', 'Error', 'OOMKilled'])
    for (const [message, exitCode, reason] of [
      ['exec: "nope": executable file not found in $PATH', 127, 'ContainerCannotRun'], ['exec: "/x": permission denied', 126, 'ContainerCannotRun'],
      ['exec: "/etc": is a directory', 126, 'ContainerCannotRun'],
      ['exec format error', 126, 'ContainerCannotRun'], ['cgroups: cannot enter', 128, 'StartError'],
    ] as const) assert.deepEqual([startFailure(message).exitCode, startFailure(message).reason], [exitCode, reason])
  })

  it('for a start to be tried again are what is left of an earlier one', () => {
    for (const message of [
      'failed to create shim task: mkdir /run/containerd/io.containerd.runtime.v2.task/k8s.io/x: file exists', 'failed to start shim: start failed: io.containerd.runc.v2: getwd: no such file or directory: exit status 1',
      'OCI runtime create failed: runc create failed: container with given ID already exists', 'OCI runtime create failed: container `x` already exists',
    ]) assert.equal(meetsLeftOver(message), true, message)
    for (const message of ['exec: "/x": stat /x: no such file or directory', 'failed to start shim: fork/exec /x: no such file or directory']) assert.equal(meetsLeftOver(message), false, message)
  })
})

describe('mounts', () => {
  const mount = (overrides: Partial<Mount>): Mount => ({ container_path: '/c', host_path: '/h', readonly: false, selinux_relabel: false, propagation: 0, uidMappings: [], gidMappings: [], recursive_read_only: false, image: null, image_sub_path: '', ...overrides })
  const host = (overrides: Partial<ContainerHost> = {}): ContainerHost => ({ resolvePath: async (path: string) => `/real${path}`, mkdirAll: async () => undefined, propagationOf: async () => ({ propagation: 'private', mountPoint: '/mnt' }), ...overrides }) as unknown as ContainerHost
  const noImage = (): never => { throw new TypeError('no image is mounted here') }

  it('follow links, and make what is missing', async () => {
    const made: string[] = []
    const [resolved] = await resolveMounts(host({
      resolvePath: async (path) => made.length > 0 ? path : Promise.reject(notFound(path)),
      mkdirAll: async (path) => void made.push(path),
    }), [mount({})], noImage)
    assert.deepEqual([resolved?.hostPath, made], ['/h', ['/h']])
  })

  it('that cannot be are refused', async () => {
    for (const wrong of [{ container_path: 'c' }, { host_path: '' }, { host_path: 'h' }, { host_path: '/a\0b' }, { container_path: '/a\0' }, { propagation: 9 }]) await assert.rejects(resolveMounts(host(), [mount(wrong)], noImage), code(Code.INVALID_ARGUMENT), JSON.stringify(wrong))
    for (const propagation of [MountPropagation.PROPAGATION_BIDIRECTIONAL, MountPropagation.PROPAGATION_HOST_TO_CONTAINER]) await assert.rejects(resolveMounts(host(), [mount({ propagation })], noImage), /mount \/c: .* is on \/mnt, which is private; run "mount --make-rshared \/mnt"/)
  })

  it('of an image are directories of the container\'s own, but for those that the request mounts', () => {
    const volumes = imageVolumes(['/data', 'rel', '/data/', '/x/../y', '/c/'], [mount({})], '/run/c1')
    assert.deepEqual(volumes.map(({ containerPath }) => containerPath), ['/data', '/rel', '/y'])
    assert.ok(volumes.every(({ hostPath }) => /^\/run\/c1\/volumes\/\d$/.test(hostPath)))
    assert.throws(() => imageVolumes(Array.from({ length: 257 }, (_, index) => `/${index}`), [], '/run/c1'), code(Code.INVALID_ARGUMENT), 'too many')
    for (const hostile of ['/', '..', '/a/..', '/a\0b']) assert.throws(() => imageVolumes([hostile], [], '/run/c1'), code(Code.INVALID_ARGUMENT), hostile)
  })
})

describe('users of images', () => {
  const image = { id: 'sha256:1', references: [], chainId: 'chain' } as unknown as Image
  function fixture(file: (path: string) => Promise<string>) {
    const left = new Set<string>()
    const alive: boolean[] = []
    const note = (ctx: Ctx): void => void alive.push(!ctx.signal.aborted)
    const containerd = {
      leases: { create: async (_: Ctx, id: string) => void left.add(`lease ${id}`), delete: async (ctx: Ctx, id: string) => { note(ctx); left.delete(`lease ${id}`) } },
      snapshots: { view: async (_: Ctx, __: string, key: string) => { left.add(`snapshot ${key}`); return [] }, remove: async (ctx: Ctx, _: string, key: string) => { note(ctx); left.delete(`snapshot ${key}`) } },
    }
    let reads = 0
    const users = new ImageUsers(containerd as unknown as Containerd, {
      withMounts: async (_, work) => work('/m'),
      readInRoot: async (_, path) => { reads += 1; return Buffer.from(await file(path)) },
    })
    return { users, left, alive, get reads() { return reads } }
  }

  it('are read once for all who ask, and nothing stays', async () => {
    const f = fixture(async (path) => path)
    const found = await Promise.all([f.users.read(base, image, 'o'), f.users.read(base, image, 'o')])
    assert.deepEqual(found, [{ passwd: '/etc/passwd', group: '/etc/group' }, { passwd: '/etc/passwd', group: '/etc/group' }])
    await f.users.read(base, image, 'o')
    assert.equal(f.reads, 2)
    assert.equal(f.left.size, 0)
  })

  it('do not keep a caller that is gone, whose going does not spoil it for the others', async () => {
    const slow = Promise.withResolvers<string>()
    const f = fixture(() => slow.promise)
    const gone = new AbortController()
    const first = f.users.read(withSignal(base, gone.signal), image, 'o')
    const second = f.users.read(base, image, 'o')
    gone.abort(new Error('gone'))
    await assert.rejects(first, /gone/)
    slow.resolve('x')
    assert.deepEqual(await second, { passwd: 'x', group: 'x' })
    assert.deepEqual([f.left.size, f.alive], [0, [true, true]])
  })

  it('leave nothing when they cannot be read, and are read anew the next time; huge ones are not kept', async () => {
    let answer: () => Promise<string> = () => Promise.reject(new Error('EIO'))
    const f = fixture(() => answer())
    await assert.rejects(f.users.read(base, image, 'o'), /reading the users of image sha256:1: EIO/)
    assert.equal(f.left.size, 0)
    answer = async () => 'x'.repeat(200_000)
    await f.users.read(base, image, 'o')
    const { reads } = f
    await f.users.read(base, image, 'o')
    assert.equal(f.reads, reads + 2)
  })
})
