import assert from 'node:assert/strict'
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtempDisposable, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { gunzipSync } from 'node:zlib'
import { buildCatalog, busyboxImage, sandboxImage } from './catalog.ts'
import { type Descriptor, blobPath, readIndex, refNameAnnotation, sha256 } from './layout.ts'
import { directory, file, hardlink, symlink, tar } from './tar.ts'
import { type Architecture, euidProgram, hostArchitecture, pauseProgram } from './tiny-elf.ts'

const needsRoot = { skip: process.getuid?.() === 0 ? false : 'needs root, for chroot and set-uid' }

/** What runs a program for an architecture here: the kernel (`setpriv` stands for nothing at all) or an emulator; undefined when this machine cannot. */
function launcherFor(architecture: Architecture): string | undefined {
  if (architecture === hostArchitecture()) return 'setpriv'
  const name = `qemu-${architecture === 'arm64' ? 'aarch64' : 'x86_64'}-static`
  return spawnSync(name, ['--version']).error === undefined ? name : undefined
}

/** The number of rt_sigtimedwait on this machine: in it, pause is ready for signals. */
const sigtimedwait = hostArchitecture() === 'amd64' ? 128 : 137

async function ended(child: ChildProcess): Promise<{ code: number | null; signal: string | null }> {
  const [code, signal] = await once(child, 'exit') as [number | null, string | null]
  return { code, signal }
}

/** Resolves when `check` holds for the file, rejects after ten seconds. The kernel has no event for a process's state. */
async function until(path: string, check: (text: string) => boolean): Promise<string> {
  const deadline = Date.now() + 10_000
  for (;;) {
    if (Date.now() > deadline) throw new Error(`${path} did not become what the test waits for`)
    const text = await readFile(path, 'utf8').catch(() => '')
    if (check(text)) return text
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

describe('tiny programs', () => {
  for (const architecture of ['amd64', 'arm64'] as const) {
    const launcher = launcherFor(architecture) ?? ''
    const skip = launcher === '' ? `no qemu-user-static on this machine to run ${architecture} programs` : false

    it(`pause exits 0 on SIGTERM and on SIGINT (${architecture})`, { skip }, async () => {
      await using dir = await mkdtempDisposable(join(tmpdir(), 'pause-'))
      const path = join(dir.path, 'pause')
      await writeFile(path, pauseProgram(architecture), { mode: 0o755 })
      for (const signal of ['SIGTERM', 'SIGINT'] as const) {
        const child = spawn(launcher, [path])
        const exit = ended(child)
        await until(`/proc/${child.pid}/syscall`, (text) => text.startsWith(`${sigtimedwait} `))
        child.kill(signal)
        assert.deepEqual(await exit, { code: 0, signal: null })
      }
    })

    it(`euid prints its effective user id (${architecture})`, { ...needsRoot, ...(skip === false ? {} : { skip }) }, async () => {
      await using dir = await mkdtempDisposable(join(tmpdir(), 'euid-'))
      const path = join(dir.path, 'euid')
      await writeFile(path, euidProgram(architecture), { mode: 0o755 })
      await chmod(dir.path, 0o755)
      for (const uid of [0, 7, 65534, 4294967294]) assert.equal(spawnSync('setpriv', ['--reuid', String(uid), '--clear-groups', launcher, path], { encoding: 'utf8' }).stdout, `Effective uid: ${uid}\n`)
    })
  }

  it('pause, as PID 1, reaps orphans and heeds SIGTERM', needsRoot, async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), 'pause-'))
    const path = join(dir.path, 'pause')
    await writeFile(path, pauseProgram(hostArchitecture()), { mode: 0o755 })
    // The shell starts a child whose child outlives it, then becomes pause: PID 1 of a new PID namespace.
    const child = spawn('unshare', ['--pid', '--fork', '--kill-child', 'sh', '-c', `(sleep 0.05 &) ; (sleep 0.1 &) ; exec ${path}`])
    const exit = ended(child)
    const init = Number((await until(`/proc/${child.pid}/task/${child.pid}/children`, (text) => text.trim() !== '')).trim())
    await until(`/proc/${init}/comm`, (text) => text === 'pause\n')
    await until(`/proc/${init}/task/${init}/children`, (text) => text.trim() === '')
    process.kill(init, 'SIGTERM')
    assert.deepEqual(await exit, { code: 0, signal: null })
  })

  it('the set-uid bit takes effect', needsRoot, async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), 'euid-'))
    const path = join(dir.path, 'euid')
    await writeFile(path, euidProgram(hostArchitecture()))
    await chmod(dir.path, 0o755)
    await chmod(path, 0o4755)
    const run = (...options: string[]): string => spawnSync('setpriv', [...options, '--reuid', '1000', '--clear-groups', path], { encoding: 'utf8' }).stdout
    assert.equal(run(), 'Effective uid: 0\n')
    assert.equal(run('--no-new-privs'), 'Effective uid: 1000\n')
  })
})

describe('tar', () => {
  it('is read back by tar as it was written', () => {
    const archive = tar([directory('d', 0o1777), file('d/f', 'hello', 0o640), hardlink('d/h', 'd/f', 0o640), symlink('d/s', 'f'), { type: 'file', path: 'd/owned', data: Buffer.alloc(513), uid: 1000, gid: 50000, mode: 0o4755 }])
    assert.equal(archive.length % 512, 0)
    const { stdout, stderr, status } = spawnSync('tar', ['--numeric-owner', '--full-time', '--utc', '-tvf', '-'], { input: archive, encoding: 'utf8' })
    assert.equal(stderr, '')
    assert.equal(status, 0)
    assert.deepEqual(stdout.trimEnd().split('\n').map((line) => line.replace(/ +/g, ' ')), [
      'drwxrwxrwt 0/0 0 1970-01-01 00:00:00 d/',
      '-rw-r----- 0/0 5 1970-01-01 00:00:00 d/f',
      'hrw-r----- 0/0 0 1970-01-01 00:00:00 d/h link to d/f',
      'lrwxrwxrwx 0/0 0 1970-01-01 00:00:00 d/s -> f',
      '-rwsr-xr-x 1000/50000 513 1970-01-01 00:00:00 d/owned',
    ])
  })

  it('refuses what the format cannot hold', () => {
    assert.throws(() => tar([file('x'.repeat(101), '')]), RangeError)
    assert.throws(() => tar([symlink('s', 'x'.repeat(101))]), RangeError)
  })
})

describe('catalogue', () => {
  interface Manifest { readonly mediaType: string; readonly config: Descriptor; readonly layers: readonly Descriptor[] }
  const read = async (dir: string, descriptor: Descriptor): Promise<Buffer> => {
    const bytes = await readFile(blobPath(dir, descriptor.digest))
    assert.equal(sha256(bytes), descriptor.digest)
    assert.equal(bytes.length, descriptor.size)
    return bytes
  }
  const json = async <T>(dir: string, descriptor: Descriptor): Promise<T> => JSON.parse((await read(dir, descriptor)).toString()) as T
  const find = async (dir: string, ref: string): Promise<Descriptor> => {
    const found = (await readIndex(dir)).find((image) => image.annotations?.[refNameAnnotation] === ref)
    assert.ok(found, `no image ${ref}`)
    return found
  }
  const own = async (dir: string, ref: string): Promise<Manifest> => {
    const { manifests } = await json<{ manifests: Descriptor[] }>(dir, await find(dir, ref))
    const chosen = manifests.find((manifest) => manifest.platform?.architecture === hostArchitecture())
    assert.ok(chosen)
    return json<Manifest>(dir, chosen)
  }

  it('is the same, byte for byte, in every build; every digest and size is right', async () => {
    await using first = await mkdtempDisposable(join(tmpdir(), 'images-'))
    await using second = await mkdtempDisposable(join(tmpdir(), 'images-'))
    const names = await buildCatalog(first.path)
    assert.ok(names.includes(sandboxImage) && names.includes(busyboxImage))
    assert.deepEqual(await buildCatalog(second.path), names)
    assert.equal(await readFile(join(first.path, 'index.json'), 'utf8'), await readFile(join(second.path, 'index.json'), 'utf8'))
    const image = await own(first.path, busyboxImage)
    const config = await json<{ rootfs: { diff_ids: string[] } }>(first.path, image.config)
    const [layer] = image.layers
    assert.ok(layer)
    assert.deepEqual(config.rootfs.diff_ids, [sha256(gunzipSync(await read(first.path, layer)))])
    // One image under two registries; another version of pause is another image.
    const pause = await own(first.path, 'registry.k8s.io/pause:3.9')
    assert.equal((await own(first.path, 'k8s.gcr.io/pause:3.9')).config.digest, pause.config.digest)
    assert.notEqual((await own(first.path, sandboxImage)).config.digest, pause.config.digest)
  })

  it('has a shell that runs files and not its own applets', needsRoot, async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), 'images-'))
    const content = join(dir.path, 'content')
    const rootfs = join(dir.path, 'rootfs')
    await mkdir(rootfs)
    await buildCatalog(content)
    const [layer] = (await own(content, busyboxImage)).layers
    assert.ok(layer)
    assert.equal(spawnSync('tar', ['-xzf', blobPath(content, layer.digest), '-C', rootfs]).status, 0)
    const run = (...command: string[]): { stdout: string; stderr: string } => spawnSync('chroot', [rootfs, ...command], { encoding: 'utf8', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } })
    assert.equal(run('/bin/sh', '-c', 'sed s/a/b/ <<x\na\nx\nseq 2 | tac').stdout, 'b\n2\n1\n')
    assert.equal(run('ls', '-A', '/tmp').stderr, '')
    await writeFile(join(rootfs, 'bin/touch'), '#!/bin/sh\necho replaced\n') // a hard link, so busybox itself: nothing but sh and scripts work now
    assert.equal(run('/bin/sh', '-c', 'ls').stdout, 'replaced\n')
  })
})
