import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { unlinkSync } from 'node:fs'
import { mkdtempDisposable, readdir, readFile, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { type Containerd as TestContainerd, startContainerd } from '../../test/fixtures/containerd.ts'
import { leakLines } from '../../test/fixtures/leaks.ts'
import { directory, file, tar } from '../../test/images/tar.ts'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { Code, CriError } from '../errors/cri-error.ts'
import { content_WriteAction } from '../generated/containerd.ts'
import { backgroundCtx, type Ctx, withSignal } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { createMetrics } from '../observability/metrics.ts'
import { unpackAny } from './any.ts'
import type { ContainerdClient } from './client.ts'
import { Containerd } from './containerd.ts'
import { ContentService } from './content.ts'
import type { WriteOptions } from './content-writer.ts'
import { removeLeftoverIngests } from './leftover-ingests.ts'
import { TaskTeardown } from './task-teardown.ts'

const skip = process.getuid?.() === 0 ? false : 'needs root'
const sha256 = (data: Uint8Array): string => `sha256:${createHash('sha256').update(data).digest('hex')}`
/** Long and random: the fixture knows what belongs to its containers by their ids, wherever on the machine they occur. */
const containerId = (): string => randomBytes(32).toString('hex')
const code = (expected: number) => (error: unknown): boolean => error instanceof CriError && error.code === expected

/** Bytes that a process has read, off sockets too. */
async function bytesRead(pid: number): Promise<number> {
  return Number(/^rchar: (\d+)$/m.exec(await readFile(`/proc/${pid}/io`, 'utf8'))?.[1])
}

describe('against a real containerd', { skip }, () => {
  const stack = new AsyncDisposableStack()
  const log = createLogger('fatal')
  const ctx: Ctx = backgroundCtx(log, 'test')
  let process_: TestContainerd
  let containerd: Containerd
  const lease = 'test-lease'

  before(async () => {
    const dir = stack.use(await mkdtempDisposable(join(tmpdir(), 'cri-shim-containerd-')))
    process_ = await startContainerd({ dir: dir.path, config: '[plugins."io.containerd.gc.v1.scheduler"]\n  schedule_delay = "0ms"\n  startup_delay = "10ms"\n' })
    stack.defer(async () => assert.deepEqual(leakLines(await process_.stop()), []))
    containerd = new Containerd({ address: `unix://${process_.socket}`, namespace: 'test', metrics: createMetrics() })
    stack.defer(() => containerd.close())
    await containerd.client.waitForReady(10_000)
    await containerd.leases.create(ctx, lease, 3_600_000)
  })
  after(async () => stack.disposeAsync())

  const blob = async (data: Buffer, labels: Record<string, string> = {}): Promise<string> => {
    const digest = sha256(data)
    const writer = await containerd.content.openWriter(ctx, { ref: `ref-${digest}`, digest, sizeBytes: data.length, lease })
    assert.ok(writer)
    await writer.write(data)
    await writer.commit(labels)
    await writer.close()
    return digest
  }

  for (const way of ['through Content.Write', 'into the file of the ingest', 'as the blob itself'] as const) describe(`content, ${way}`, () => {
    const direct = way !== 'through Content.Write'
    const large = 2 * 1024 * 1024
    before(() => containerd.content.writeBelow(direct ? join(process_.root, 'io.containerd.content.v1.content') : undefined, { link: way === 'as the blob itself' }))
    after(() => containerd.content.writeBelow(undefined))

    it('goes on with an interrupted write where it stopped, and begins anew when told to', async () => {
      const data = randomBytes(12 * 1024 * 1024 + 17)
      const options = { ref: `resume/${way}`, digest: sha256(data), sizeBytes: data.length, lease }
      const stop = new AbortController()
      const first = await containerd.content.openWriter(withSignal(ctx, stop.signal), options)
      assert.ok(first)
      await first.write(data.subarray(0, 2 * 1024 * 1024))
      stop.abort(new Error('client gone'))
      await assert.rejects(async () => {
        for (;;) {
          await first.write(data.subarray(2 * 1024 * 1024, 3 * 1024 * 1024))
          await turn()
        }
      }, /client gone/)
      await first.close()

      const second = await containerd.content.openWriter(ctx, options)
      assert.ok(second)
      if (direct) assert.ok(second.offsetBytes >= 2 * 1024 * 1024)
      await second.truncate()
      assert.equal(second.offsetBytes, 0)
      await second.write(data.subarray(0, 11 * 1024 * 1024))
      await second.close()

      // 8 MiB may have been on their way when it was closed.
      const third = await containerd.content.openWriter(ctx, options)
      assert.ok(third)
      assert.ok(third.offsetBytes >= 3 * 1024 * 1024 && third.offsetBytes <= 11 * 1024 * 1024, String(third.offsetBytes))
      await third.write(data.subarray(third.offsetBytes))
      await third.commit({ 'test/label': 'yes' })
      await third.close()
      const info = await containerd.content.info(ctx, options.digest)
      assert.deepEqual([Number(info?.size), info?.labels['test/label']], [data.length, 'yes'])
      assert.equal(await containerd.content.openWriter(ctx, options), undefined, 'there already')
      assert.ok((await containerd.content.read(ctx, options.digest, data.length)).equals(data))
      const hash = createHash('sha256')
      for await (const piece of containerd.content.stream(ctx, options.digest)) hash.update(piece)
      assert.equal(`sha256:${hash.digest('hex')}`, options.digest)
      await assert.rejects(containerd.content.stream(ctx, sha256(Buffer.from('no'))).next(), code(Code.NOT_FOUND))
    })

    it('refuses bytes that are not those of the digest', async () => {
      const data = randomBytes(large)
      const writer = await containerd.content.openWriter(ctx, { ref: 'wrong', digest: sha256(data), sizeBytes: data.length, lease })
      assert.ok(writer)
      await writer.write(randomBytes(large))
      await assert.rejects(writer.commit({}), code(Code.FAILED_PRECONDITION))
      await writer.close()
      await containerd.content.abort(ctx, 'wrong')
      await containerd.content.abort(ctx, 'wrong')
      assert.equal(await containerd.content.info(ctx, sha256(data)), undefined)
    })

    it('completes the labels of a blob that somebody else committed meanwhile', async () => {
      const data = randomBytes(large)
      const digest = sha256(data)
      const late = await containerd.content.openWriter(ctx, { ref: 'late', digest, sizeBytes: data.length, lease })
      assert.ok(late)
      await late.write(data)
      await blob(data, { 'test/theirs': '1' })
      await late.commit({ 'containerd.io/gc.ref.content.config': 'sha256:0' })
      await late.close()
      const info = await containerd.content.info(ctx, digest)
      assert.deepEqual(info?.labels, { 'test/theirs': '1', 'containerd.io/gc.ref.content.config': 'sha256:0' })
    })

    it('refuses to read what is too large without tearing anything else down', async () => {
      const digest = await blob(randomBytes(3 * 1024 * 1024))
      for (let round = 0; round < 5; round++) await assert.rejects(containerd.content.read(ctx, digest, 10), code(Code.INVALID_ARGUMENT))
      for (let round = 0; round < 20; round++) await turn()
      await assert.rejects(containerd.content.read(ctx, sha256(Buffer.from('no')), 10), code(Code.NOT_FOUND))
    })

    it('writes past containerd only when it may, and containerd finds what was written', async () => {
      const data = randomBytes(large)
      const options = { ref: `where/${way}`, digest: sha256(data), sizeBytes: data.length, lease }
      const writer = await containerd.content.openWriter(ctx, options)
      assert.ok(writer)
      const readBefore = await bytesRead(process_.pid)
      for (let at = 0; at < data.length; at += 65_536) await writer.write(data.subarray(at, at + 65_536))
      const read = await bytesRead(process_.pid) - readBefore
      if (direct) assert.ok(read < data.length / 2, `containerd read ${read} bytes before the commit`)
      await writer.commit({})
      await writer.close()
      assert.ok((await containerd.content.read(ctx, options.digest, data.length)).equals(data))
    })

    it('sees a commit through that is cancelled meanwhile', async () => {
      const data = randomBytes(large)
      const stop = new AbortController()
      const options = { ref: `through/${way}`, digest: sha256(data), sizeBytes: data.length, lease }
      const writer = await containerd.content.openWriter(withSignal(ctx, stop.signal), options)
      assert.ok(writer)
      await writer.write(data)
      const committed = writer.commit({}).then(() => 'committed', () => 'not begun')
      setTimeout(() => stop.abort(new Error('client gone')), Math.random() * 20)
      const result = await committed
      await writer.close()
      // Nothing happens to it afterwards.
      const found = await containerd.content.info(ctx, options.digest) !== undefined
      assert.equal(found, result === 'committed')
      for (let round = 0; round < 20; round++) await turn()
      assert.equal(await containerd.content.info(ctx, options.digest) !== undefined, found)
    })

    it('keeps others out while it writes', async () => {
      const data = randomBytes(large)
      const options = { ref: `locked/${way}`, digest: sha256(data), sizeBytes: data.length, lease }
      const writer = await containerd.content.openWriter(ctx, options)
      assert.ok(writer)
      await writer.write(data)
      await assert.rejects(containerd.content.openWriter(withSignal(ctx, AbortSignal.timeout(300)), options))
      await writer.commit({})
      await writer.close()
    })

    it('writes an empty blob', async () => {
      await containerd.content.delete(ctx, sha256(Buffer.alloc(0)))
      const digest = await blob(Buffer.alloc(0))
      assert.equal((await containerd.content.read(ctx, digest, 10)).length, 0)
    })
  })

  describe('content that becomes a blob as it was written', () => {
    const large = 4 * 1024 * 1024
    const store = (): string => join(process_.root, 'io.containerd.content.v1.content')
    before(() => containerd.content.writeBelow(store(), { link: true }))
    after(() => containerd.content.writeBelow(undefined))
    const ingests = async (): Promise<string[]> => (await readdir(join(store(), 'ingest'), { recursive: true })).filter((name) => name.endsWith('/data'))

    it('is not read by containerd, and leaves no ingest behind', async () => {
      const data = randomBytes(large)
      const options = { ref: 'as-it-is', digest: sha256(data), sizeBytes: data.length, lease }
      const before = await ingests()
      const writer = await containerd.content.openWriter(ctx, options)
      assert.ok(writer)
      await writer.write(data)
      const readBefore = await bytesRead(process_.pid)
      await writer.commit({ 'test/label': 'yes' })
      assert.ok(await bytesRead(process_.pid) - readBefore < large / 2)
      assert.equal((await containerd.content.info(ctx, options.digest))?.labels['test/label'], 'yes')
      await writer.close()
      const { mode, nlink, size } = await stat(join(store(), 'blobs/sha256', options.digest.slice('sha256:'.length)))
      assert.deepEqual([mode & 0o777, nlink, size], [0o444, 1, large])
      assert.deepEqual(await ingests(), before)
      assert.deepEqual((await containerd.content.statuses(ctx)).filter(({ ref }) => ref.includes('as-it-is') || ref.includes(options.digest)), [])
    })

    it('may be written out of order, and in several goes', async () => {
      const data = randomBytes(large)
      const options = { ref: 'in-parts', digest: sha256(data), sizeBytes: data.length, lease }
      const first = await containerd.content.openWriter(ctx, options)
      assert.ok(first)
      await first.write(data.subarray(0, 1000))
      await first.close()
      const second = await containerd.content.openWriter(ctx, options)
      assert.ok(second)
      assert.equal(second.offsetBytes, 1000)
      await second.writeAt(data.subarray(3_000_000), 3_000_000)
      await second.write(data.subarray(1000, 3_000_000))
      second.filledTo(large)
      const readBefore = await bytesRead(process_.pid)
      await second.commit({})
      assert.ok(await bytesRead(process_.pid) - readBefore < large / 2)
      await second.close()
      assert.ok((await containerd.content.read(ctx, options.digest, large)).equals(data))
    })

    it('is hashed anew after a truncation', async () => {
      const data = randomBytes(large)
      const options = { ref: 'anew', digest: sha256(data), sizeBytes: data.length, lease }
      const writer = await containerd.content.openWriter(ctx, options)
      assert.ok(writer)
      await writer.write(randomBytes(1000))
      await writer.truncate()
      await writer.write(data)
      const readBefore = await bytesRead(process_.pid)
      await writer.commit({})
      assert.ok(await bytesRead(process_.pid) - readBefore < large / 2)
      await writer.close()
    })

    /** The content service, with something done before each call of a kind: what comes between two calls of ours. */
    function interrupted(before: (method: string, ref: string) => void): ContentService {
      const { client } = containerd
      const content = new ContentService({
        namespace: client.namespace, translate: client.translate.bind(client), serverStream: client.serverStream.bind(client),
        call: async (...given: Parameters<typeof client.call>) => {
          before(given[2], (given[3] as { readonly ref?: string }).ref ?? '')
          return client.call(...given)
        },
        upload: (...given: Parameters<typeof client.upload>) => {
          const call = client.upload(...given)
          return {
            ...call,
            send: (request: Buffer | { readonly action: number; readonly ref: string }) => {
              if (!Buffer.isBuffer(request)) before(request.action === content_WriteAction.COMMIT ? 'Commit' : 'Write', request.ref)
              call.send(request)
            },
          }
        },
      } as unknown as ContainerdClient)
      content.writeBelow(store(), { link: true })
      return content
    }
    const blobFile = (digest: string): string => join(store(), 'blobs/sha256', digest.slice('sha256:'.length))
    const ingestsOf = async (ref: string): Promise<string[]> => {
      const found = await Promise.all((await readdir(join(store(), 'ingest'))).map(async (name) => ({ name, text: await readFile(join(store(), 'ingest', name, 'ref'), 'utf8') })))
      return found.filter(({ text }) => text.endsWith(`/${ref}`)).map(({ name }) => name)
    }
    const failing = (method: string, start: string) => (called: string, ref: string): void => {
      if (called === method && ref.startsWith(start)) throw new CriError(Code.UNAVAILABLE, 'a crash')
    }
    /** A blob whose writer came to its end at this point. */
    async function crashed(ref: string, before: (method: string, ref: string) => void): Promise<{ readonly data: Buffer; readonly options: WriteOptions }> {
      const data = randomBytes(large)
      const options = { ref, digest: sha256(data), sizeBytes: large, lease }
      const writer = await interrupted(before).openWriter(ctx, options)
      assert.ok(writer)
      await writer.write(data)
      await writer.commit({}).catch((error: unknown) => assert.match(String(error), /a crash/))
      await writer.close()
      assert.deepEqual([(await stat(blobFile(options.digest))).nlink, (await ingestsOf(ref)).length], [2, 1], 'the crash was where it was meant to be')
      return { data, options }
    }

    it('is linked again when garbage collection took it before containerd knew of it, and so are those after it', async () => {
      let collections = 0
      const content = interrupted((method, ref) => {
        // A blob that no namespace knows.
        if (method !== 'Write' || !ref.startsWith('linked-') || collections++ > 0) return
        unlinkSync(blobFile(ref.slice('linked-'.length)))
      })
      for (const ref of ['collected', 'later']) {
        const data = randomBytes(large)
        const options = { ref, digest: sha256(data), sizeBytes: large, lease }
        const writer = await content.openWriter(ctx, options)
        assert.ok(writer)
        await writer.write(data)
        const readBefore = await bytesRead(process_.pid)
        await writer.commit({ 'test/label': ref })
        await writer.close()
        assert.ok(await bytesRead(process_.pid) - readBefore < large / 2, ref)
        assert.equal((await content.info(ctx, options.digest))?.labels['test/label'], ref)
        assert.ok((await content.read(ctx, options.digest, large)).equals(data))
        assert.equal((await stat(blobFile(options.digest))).nlink, 1)
      }
    })

    for (const [when, method, start] of [['it was noted', 'Write', 'linked-'], ['the note was committed', 'Commit', 'linked-']] as const) {
      it(`is there without another download after a crash before ${when}`, async () => {
        const { data, options } = await crashed(`before-${method}`, failing(method, start))
        const writer = await containerd.content.openWriter(ctx, options)
        assert.ok(writer)
        assert.equal(writer.offsetBytes, large)
        await writer.commit({ 'test/label': 'yes' })
        await writer.close()
        assert.equal((await containerd.content.info(ctx, options.digest))?.labels['test/label'], 'yes')
        assert.ok((await containerd.content.read(ctx, options.digest, large)).equals(data))
        assert.deepEqual([(await stat(blobFile(options.digest))).nlink, await ingestsOf(options.ref)], [1, []])
      })
    }

    it('leaves no ingest behind after a crash when it was noted', async () => {
      const { options } = await crashed('noted', failing('Abort', 'noted'))
      assert.equal(await containerd.content.openWriter(ctx, options), undefined)
      assert.deepEqual([(await stat(blobFile(options.digest))).nlink, await ingestsOf('noted')], [1, []])
    })

    it('does not change any more, whoever goes on with the ingest of a crash', async () => {
      for (const sizeBytes of [large, large - 1000]) {
        const { data, options } = await crashed(`changed-${sizeBytes}`, failing('Write', 'linked-'))
        // As an image that gives a wrong size of it.
        const writer = await containerd.content.openWriter(ctx, { ...options, sizeBytes })
        assert.ok(writer)
        if (writer.offsetBytes > 0) await writer.truncate()
        await writer.write(randomBytes(2 * 1024 * 1024))
        await writer.close()
        assert.equal(sha256(await readFile(blobFile(options.digest))), options.digest, `as one of ${sizeBytes} bytes`)
        assert.equal(data.length, large)
        await containerd.content.abort(ctx, options.ref)
      }
    })

    it('leaves nothing that the start of the service does not find: notes that were not committed, and the ingests of blobs that are noted', async () => {
      const own = 'cri-shim-pull-test'
      await containerd.leases.create(ctx, own, 3_600_000)
      const content = interrupted(failing('Commit', 'linked-'))
      const late = interrupted(failing('Abort', 'layer-'))
      const unfinished = randomBytes(large)
      for (const [each, through] of [[randomBytes(large), content], [randomBytes(large), late], [unfinished, undefined]] as const) {
        const digest = sha256(each)
        const writer = await (through ?? containerd.content).openWriter(ctx, { ref: `layer-${digest}`, digest, sizeBytes: large, lease: own })
        assert.ok(writer)
        await writer.write(through === undefined ? each.subarray(0, 1000) : each)
        if (through !== undefined) await writer.commit({}).catch((error: unknown) => assert.match(String(error), /a crash/))
        await writer.close()
      }
      const ingestsUnder = async (): Promise<string[]> => (await containerd.leases.resources(ctx, own)).filter(({ type }) => type === 'ingests').map(({ id }) => id)
      assert.equal((await ingestsUnder()).length, 4)
      await removeLeftoverIngests(ctx, containerd, (lease_) => lease_ === own)
      // The first blob was never noted: its ingest has what would have to be downloaded again.
      assert.equal((await ingestsUnder()).length, 2)
      assert.ok((await ingestsUnder()).includes(`layer-${sha256(unfinished)}`))
      await containerd.leases.delete(ctx, own, true)
    })

    it('is taken from another namespace that has it, with labels of its own', async () => {
      const other = new Containerd({ address: `unix://${process_.socket}`, namespace: 'other', metrics: createMetrics() })
      await using _ = { [Symbol.asyncDispose]: async () => other.close() }
      await other.client.waitForReady(10_000)
      await other.leases.create(ctx, lease, 3_600_000)
      const data = randomBytes(large)
      const digest = sha256(data)
      const theirs = await other.content.openWriter(ctx, { ref: 'theirs', digest, sizeBytes: large, lease })
      const ours = await containerd.content.openWriter(ctx, { ref: 'ours', digest, sizeBytes: large, lease })
      assert.ok(theirs !== undefined && ours !== undefined)
      await ours.write(data)
      await theirs.write(data)
      await theirs.commit({ 'test/label': 'theirs' })
      await theirs.close()
      await ours.commit({ 'test/label': 'ours' })
      await ours.close()
      assert.deepEqual([(await containerd.content.info(ctx, digest))?.labels, (await other.content.info(ctx, digest))?.labels], [{ 'test/label': 'ours' }, { 'test/label': 'theirs' }])
    })

    it('is read by a containerd whose namespaces share nothing', async () => {
      await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-containerd-'))
      const isolated = await startContainerd({ dir: dir.path, config: '[plugins."io.containerd.metadata.v1.bolt"]\n  content_sharing_policy = "isolated"\n' })
      await using _ = { [Symbol.asyncDispose]: async () => assert.deepEqual(leakLines(await isolated.stop()), []) }
      const api = new Containerd({ address: `unix://${isolated.socket}`, namespace: 'test', metrics: createMetrics() })
      await using __ = { [Symbol.asyncDispose]: async () => api.close() }
      await api.client.waitForReady(10_000)
      await api.leases.create(ctx, lease, 3_600_000)
      api.content.writeBelow(join(isolated.root, 'io.containerd.content.v1.content'), { link: true })
      for (const ref of ['first', 'second']) {
        const data = randomBytes(large)
        const options = { ref, digest: sha256(data), sizeBytes: large, lease }
        const writer = await api.content.openWriter(ctx, options)
        assert.ok(writer)
        await writer.write(data)
        await writer.commit({ 'test/label': ref })
        await writer.close()
        assert.equal((await api.content.info(ctx, options.digest))?.labels['test/label'], ref)
        assert.ok((await api.content.read(ctx, options.digest, large)).equals(data))
        assert.deepEqual(await api.content.statuses(ctx), [])
      }
    })
  })

  describe('leases', () => {
    it('keep what is under them until they are deleted', async () => {
      await containerd.leases.create(ctx, 'short', 3_600_000)
      const data = randomBytes(100)
      const writer = await containerd.content.openWriter(ctx, { ref: 'leased', digest: sha256(data), sizeBytes: data.length, lease: 'short' })
      assert.ok(writer)
      await writer.write(data)
      await writer.commit({})
      await writer.close()
      assert.notEqual(await containerd.content.info(ctx, sha256(data)), undefined)
      await containerd.leases.delete(ctx, 'short', true)
      await containerd.leases.delete(ctx, 'short')
      assert.equal(await containerd.content.info(ctx, sha256(data)), undefined)
    })

    it('end when they expire', async () => {
      await containerd.leases.create(ctx, 'expired', -1000)
      await containerd.leases.create(ctx, 'trigger', 3_600_000)
      await containerd.leases.delete(ctx, 'trigger', true)
      assert.deepEqual((await containerd.leases.list(ctx)).map(({ id }) => id).filter((id) => id === 'expired'), [])
    })
  })

  describe('snapshots and diff', () => {
    it('unpack a layer, stack another on it and account for both', async () => {
      const layer = tar([directory('etc'), file('etc/passwd', 'root:x:0:0::/:/bin/sh\n')])
      const compressed = gzipSync(layer)
      const digest = await blob(compressed)
      const mounts = await containerd.snapshots.prepare(ctx, 'overlayfs', 'extract', '', {}, { lease })
      await assert.rejects(containerd.snapshots.prepare(ctx, 'overlayfs', 'extract', ''), code(Code.ALREADY_EXISTS))
      const descriptor = { media_type: 'application/vnd.oci.image.layer.v1.tar+gzip', digest, size: String(compressed.length) }
      assert.equal(await containerd.diff.apply(ctx, descriptor, mounts, { lease }), sha256(layer))
      await containerd.snapshots.commit(ctx, 'overlayfs', 'chain', 'extract', {}, { lease })
      const view = await containerd.snapshots.view(ctx, 'overlayfs', 'look', 'chain', {}, { lease })
      const source = view[0]?.source ?? ''
      assert.equal(await readFile(join(source, 'etc/passwd'), 'utf8'), 'root:x:0:0::/:/bin/sh\n')
      assert.ok((await containerd.snapshots.usage(ctx, 'overlayfs', 'chain')).inodes >= 2n)
      assert.deepEqual((await containerd.snapshots.list(ctx, 'overlayfs')).map(({ name }) => name).toSorted(), ['chain', 'look'])
      for (const key of ['look', 'look', 'chain']) await containerd.snapshots.remove(ctx, 'overlayfs', key)
      assert.equal(await containerd.snapshots.stat(ctx, 'overlayfs', 'chain'), undefined)
    })
  })

  describe('images', () => {
    it('keep labels that an update does not name', async () => {
      const target = (digest: string): { media_type: string; digest: string; size: string } => ({ media_type: 'application/vnd.oci.image.manifest.v1+json', digest, size: '2' })
      const [one, two] = [await blob(Buffer.from('{}')), await blob(Buffer.from('[]'))]
      await containerd.images.createOrUpdate(ctx, { name: 'a:1', target: target(one), labels: { managed: 'yes' } })
      await containerd.images.setLabel(ctx, 'a:1', 'pinned', 'yes')
      await containerd.images.createOrUpdate(ctx, { name: 'a:1', target: target(two), labels: { managed: 'still' } })
      const record = await containerd.images.get(ctx, 'a:1')
      assert.deepEqual([record?.target?.digest, record?.labels], [two, { managed: 'still', pinned: 'yes' }])
      await containerd.images.delete(ctx, 'a:1', true)
      await containerd.images.delete(ctx, 'a:1', true)
      assert.equal(await containerd.images.get(ctx, 'a:1'), undefined)
    })
  })

  describe('events', () => {
    it('say when they are listening, and nothing is missed from then on', async () => {
      const stop = new AbortController()
      const names: string[] = []
      const made = ['e:1', 'e:2', 'e:3']
      const digest = await blob(Buffer.from('{"e":1}'))
      await assert.rejects(async () => {
        for await (const event of containerd.events.subscribe(withSignal(ctx, stop.signal))) {
          if (event.name === 'synced') {
            for (const name of made) await containerd.images.createOrUpdate(ctx, { name, target: { media_type: 'x/y', digest, size: '7' } })
            continue
          }
          if (event.name === 'containerd.services.images.v1.ImageCreate') names.push(event.message.name)
          if (names.length === made.length) stop.abort(new Error('enough'))
        }
      }, /enough/)
      assert.deepEqual(names, made)
    })

    it('ask no more once they are heard, however long whoever listens is busy', async () => {
      const stop = new AbortController()
      const seen: string[] = []
      const watching = (async () => {
        for await (const envelope of containerd.client.serverStream(withSignal(ctx, stop.signal), 'containerd.services.events.v1.Events', 'Subscribe', { filters: ['namespace==test,topic~="^/cri-shim/subscribed/"'] }, 'probes')) seen.push(envelope.topic)
      })()
      watching.catch(() => undefined)
      const events = containerd.events.subscribe(ctx)
      assert.equal((await events.next()).value?.name, 'synced')
      const marker = async (): Promise<void> => {
        // Events come in order: once the marker is here, so is all that was published before it.
        const topic = `/cri-shim/subscribed/marker-${seen.length}-${randomBytes(4).toString('hex')}`
        for (; !seen.includes(topic); await turn()) await containerd.client.call(ctx, 'containerd.services.events.v1.Events', 'Publish', { topic, event: { type_url: 'x', value: Buffer.alloc(0) } }, 'marker')
      }
      await marker()
      const probes = (): number => seen.filter((topic) => !topic.includes('marker')).length
      const before = probes()
      for (const end = performance.now() + 300; performance.now() < end;) await marker()
      assert.equal(probes(), before)
      await events.return()
      stop.abort(new Error('over'))
      await assert.rejects(watching, /over/)
    })
  })

  describe('containers and tasks', () => {
    it('answer undefined or nothing for what is not there', async () => {
      assert.equal(await containerd.containers.get(ctx, 'nobody'), undefined)
      await containerd.containers.delete(ctx, 'nobody')
      assert.equal(await containerd.tasks.get(ctx, 'nobody'), undefined)
      assert.equal(await containerd.tasks.delete(ctx, 'nobody'), undefined)
      const teardown = new TaskTeardown(containerd.tasks, new KeyedMutex())
      assert.equal(await teardown.destroy(ctx, 'nobody'), undefined)
    })

    it('replace one extension and leave everything else', async () => {
      const id = containerId()
      const any = (text: string): { type_url: string; value: Buffer } => ({ type_url: 'test/x', value: Buffer.from(text) })
      await containerd.containers.create(ctx, { id, runtime: { name: 'io.containerd.runc.v2' }, spec: any('{}'), extensions: { a: any('1'), b: any('2') }, labels: { l: 'x' } })
      await containerd.containers.setExtension(ctx, id, 'a', any('3'))
      const record = await containerd.containers.get(ctx, id)
      assert.deepEqual([record?.extensions['a']?.value.toString(), record?.extensions['b']?.value.toString(), record?.labels], ['3', '2', { l: 'x' }])
      assert.equal(unpackAny('containerd.events.TaskExit', record?.extensions['a'] ?? null), undefined)
      await containerd.containers.delete(ctx, id)
    })

    it('see what makes something through to the end when the request is cancelled meanwhile', async () => {
      const id = containerId()
      const stop = new AbortController()
      const making = containerd.containers.create(withSignal(ctx, stop.signal), { id, runtime: { name: 'io.containerd.runc.v2' }, spec: { type_url: 'x', value: Buffer.from('{}') } })
      stop.abort(new Error('client gone'))
      assert.equal((await making).id, id)
      await assert.rejects(containerd.containers.get(withSignal(ctx, stop.signal), id), /client gone/)
      await containerd.containers.delete(ctx, id)
    })

    it('name the call that took longer than its signal allowed', async () => {
      const stop = new AbortController()
      const reading = containerd.containers.list(withSignal(ctx, stop.signal))
      stop.abort(new DOMException('The operation was aborted due to timeout', 'TimeoutError'))
      await assert.rejects(reading, (error) => error instanceof CriError && error.code === Code.DEADLINE_EXCEEDED && error.message.includes('Containers.List (containers)'))
    })
  })

  it('says that containerd is not there, and finds it again', async () => {
    await process_.end('SIGKILL')
    await assert.rejects(containerd.containers.list(ctx), (error) => error instanceof CriError && error.reason === 'ContainerdUnavailable' && error.message.includes('is it running?'))
    await assert.rejects(async () => {
      for await (const event of containerd.events.subscribe(ctx)) assert.fail(event.name)
    }, code(Code.UNAVAILABLE))
    await process_.start()
    await containerd.client.waitForReady(10_000)
    assert.deepEqual(await containerd.containers.list(ctx), [])
  })
})
