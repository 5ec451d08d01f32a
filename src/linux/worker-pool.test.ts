import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Linux } from './linux.ts'
import { failing, fixture, type Fixture } from './testing/fixture.ts'

/** A file system whose server never answers, as NFS without its server: every access hangs until `answer` is called. */
async function hungFileSystem({ linux, dir, defer }: Fixture, name = 'hung'): Promise<{ path: string; answer: () => void }> {
  const path = join(dir, name)
  mkdirSync(path)
  const fd = openSync('/dev/fuse', 'r+')
  let open = true
  const answer = (): void => {
    if (open) closeSync(fd)
    open = false
  }
  defer(answer)
  await linux.mount({ source: 'hung', target: path, fstype: 'fuse', data: `fd=${fd},rootmode=40000,user_id=0,group_id=0` })
  return { path, answer }
}

/** Resolves when `condition` holds. The pool has no event for it, and a caller needs none. */
async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 30_000
  while (!condition()) {
    if (performance.now() > end) throw new Error(`never came true: ${condition.toString()}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

test('a call on a hung path fails at its deadline, names itself, and others go on', async (t) => {
  const f = await fixture(t)
  const { path, answer } = await hungFileSystem(f)
  const file = join(path, 'file')
  const hanging = f.linux.statPath(file, { timeoutMs: 100 })
  const rest = Promise.all(Array.from({ length: 20 }, (_, index) => f.linux.createNetns(join(f.dir, `netns-${index}`))))
  await assert.rejects(hanging, failing('DEADLINE_EXCEEDED', 'statPath', file))
  await rest
  assert.ok((await f.linux.statPath('/'))?.type === 'directory')

  await until(() => f.linux.hung.length === 1)
  assert.match(f.linux.hung[0] ?? '', new RegExp(`^statPath ${file}`))
  await assert.rejects(f.linux.resolvePath(file), failing('HUNG', 'resolvePath', file, 'statPath'))
  await assert.rejects(f.linux.diskUsage(join(file, 'below')), failing('HUNG', file))
  assert.ok((await f.linux.statPath('/tmp'))?.type === 'directory')

  answer()
  await until(() => f.linux.hung.length === 0)
  assert.deepEqual(f.logged, ['a system call hangs; its thread is set aside', 'a system call that hung has returned'])
  await assert.rejects(f.linux.statPath(file), failing('ENOTCONN', file))
})

test('the number of hung calls is bounded; then calls on other pods\' paths fail at once, our own go on', async (t) => {
  const f = await fixture(t, { workers: 1, maxHung: 2 })
  const { path, answer } = await hungFileSystem(f)
  for (const [index, name] of ['a', 'b'].entries()) {
    await assert.rejects(f.linux.statPath(join(path, name), { timeoutMs: 50 }), failing('DEADLINE_EXCEEDED', name))
    await until(() => f.linux.hung.length === index + 1)
  }
  await assert.rejects(f.linux.statPath('/somewhere/else'), failing('HUNG', '/somewhere/else', join(path, 'a'), join(path, 'b')))
  await f.linux.createNetns(join(f.dir, 'netns'))
  assert.equal(f.linux.load.threads, 3)

  // Ours can hang too. When no thread is left every call says so.
  await assert.rejects(f.linux.mkfifo(join(path, 'fifo'), 0o600, { timeoutMs: 50 }), failing('DEADLINE_EXCEEDED', 'fifo'))
  await until(() => f.linux.hung.length === 3)
  await assert.rejects(f.linux.mountInfo(), failing('HUNG', 'mountInfo', join(path, 'fifo')))
  answer()
  await until(() => f.linux.hung.length === 0)
  await f.linux.mountInfo()
  assert.ok(f.linux.load.threads <= 2)
})

test('calls that wait behind hung ones of other pods get a thread before those are given up', async (t) => {
  const f = await fixture(t, { workers: 2 })
  const { path, answer } = await hungFileSystem(f)
  const hanging = ['a', 'b', 'c'].map((name) => f.linux.statPath(join(path, name), { timeoutMs: 60_000 }))
  const settled = Promise.allSettled(hanging)
  assert.equal((await f.linux.statPath('/', { timeoutMs: 30_000 }))?.type, 'directory')
  answer()
  for (const outcome of await settled) assert.equal(outcome.status, 'rejected')
})

test('a queue that moves gets no further thread, however long it is', async (t) => {
  const f = await fixture(t, { workers: 1 })
  const end = performance.now() + 600
  let most = 0
  // Some wait all the time, for more than twice as long as a hung thread would be waited for.
  await Promise.all(Array.from({ length: 20 }, async () => {
    while (performance.now() < end) {
      await f.linux.mountInfo()
      most = Math.max(most, f.linux.load.threads)
    }
  }))
  assert.equal(most, 1)
})

test('an abort rejects with its reason, queued and running, and never runs what was queued', async (t) => {
  const f = await fixture(t, { workers: 1 })
  const { path, answer } = await hungFileSystem(f)
  const running = new AbortController()
  const queued = new AbortController()
  const first = f.linux.statPath(path, { signal: running.signal })
  const second = f.linux.mkdirAll(join(f.dir, 'never'), 0o755, { signal: queued.signal })
  queued.abort(new Error('no longer wanted'))
  await assert.rejects(second, { message: 'no longer wanted' })
  running.abort(new Error('too late'))
  await assert.rejects(first, { message: 'too late' })
  await assert.rejects(f.linux.statPath('/', { signal: AbortSignal.abort(new Error('before')) }), { message: 'before' })
  answer()
  await f.linux.mountInfo()
  assert.deepEqual(readdirSync(f.dir), ['hung'])
})

test('what could not be finished in time is taken back', async (t) => {
  const f = await fixture(t, { workers: 1 })
  const { path, answer } = await hungFileSystem(f)
  // The first mount is made, the second hangs on its source.
  const mounts = [
    { type: 'tmpfs', source: 'tmpfs', options: [] },
    { type: 'bind', source: join(path, 'source'), options: ['rbind'] },
  ]
  const target = join(f.dir, 'target')
  mkdirSync(target)
  await assert.rejects(f.linux.mountAll(mounts, target, { timeoutMs: 100 }), failing('DEADLINE_EXCEEDED', target))
  answer()
  await until(() => f.linux.hung.length === 0)
  assert.equal(await f.linux.isMountPoint(target), false)
})

test('after close every call is refused; closing twice is OK', async () => {
  const linux = await Linux.start({ log: { warn: () => undefined, info: () => undefined } })
  assert.deepEqual(await linux.close(), [])
  assert.deepEqual(await linux.close(), [])
  await assert.rejects(linux.mountInfo(), failing('UNAVAILABLE'))
})

test('the process can end although a thread hangs', async (t) => {
  const f = await fixture(t)
  const { path } = await hungFileSystem(f)
  const program = `
    import { Linux } from ${JSON.stringify(new URL('linux.ts', import.meta.url).href)}
    const linux = await Linux.start({ log: { warn() {}, info() {} } })
    await linux.statPath(${JSON.stringify(path)}, { timeoutMs: 50 }).catch(() => {})
    const hung = await linux.close()
    Linux.exitProcess(hung.length === 1 ? 7 : 8)`
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: 'inherit' })
  f.defer(() => child.kill('SIGKILL'))
  assert.deepEqual(await once(child, 'exit'), [7, null])
})

