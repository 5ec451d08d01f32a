import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { RecordingProxy } from '../fixtures/recording-proxy.ts'
import { addImage, addLayer } from '../images/image.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, failureOf, type PrivateNode, pull, restart, skipUnlessRoot, startNode } from './private-node.ts'

// A large layer becomes a blob in four steps: a link among the blobs, a note of containerd's that is opened, then committed, and the end of its ingest.

const ref = (name: string): string => `registry.k8s.io/crash/${name}:1`
const service = '/containerd.services.content.v1.Content'
const steps = {
  'the note is opened': (path: string, first: Buffer, digest: string) => path === `${service}/Write` && first.includes(`linked-${digest}`),
  'the ingest is ended': (path: string, first: Buffer, digest: string) => path === `${service}/Abort` && first.includes(`layer-${digest}`),
} as const

describe('a crash while a layer becomes a blob', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  const layers = new Map<string, string>()
  let hold: ((path: string, first: Buffer) => Promise<void> | undefined) | undefined
  before(async () => {
    node = await startNode({
      between: (target, dir) => RecordingProxy.start({ target, dir, keep: () => false, hold: (path, first) => hold?.(path, first) }),
      images: async (content) => {
        for (const name of ['opened', 'ended', 'away']) {
          const layer = await addLayer(content, [file(name, randomBytes(2 * 1024 * 1024))], 'oci', 'none')
          layers.set(name, layer.descriptor.digest)
          content.name(ref(name), await addImage(content, [layer], hostArchitecture(), { Labels: { name } }))
        }
      },
    })
  })
  after(async () => {
    assert.deepEqual(await node.stop(), [])
  })

  const store = (): string => join(node.containerd.root, 'io.containerd.content.v1.content')
  const namesOf = async (digest: string): Promise<number> => (await stat(join(store(), 'blobs', digest.replace(':', '/')))).nlink
  const ingests = async (): Promise<string[]> => readdir(join(store(), 'ingest'))
  /** Ends one side while a pull is before this step. What the pull said. */
  async function crash(name: string, step: keyof typeof steps, end: () => Promise<void>): Promise<string> {
    const digest = layers.get(name) ?? ''
    const [reached, over] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    hold = (path, first) => {
      if (!steps[step](path, first, digest)) return undefined
      reached.resolve()
      return over.promise
    }
    const failure = failureOf(pull(node, ref(name)))
    await reached.promise
    assert.equal(await namesOf(digest), 2)
    await end()
    hold = undefined
    over.resolve()
    return failure
  }
  /** The image is pulled, with that many downloads of its layer in all, and nothing but it is there. */
  async function isWhole(name: string, downloads: number): Promise<void> {
    const digest = layers.get(name) ?? ''
    await pull(node, ref(name))
    assert.equal(node.registry.requests.filter(({ kind, reference }) => kind === 'blob' && reference === digest).length, downloads)
    assert.deepEqual([await namesOf(digest), await ingests()], [1, []])
    await node.cri.image.RemoveImage({ image: { image: ref(name) } })
    assert.equal(await node.api.content.info(node.ctx, digest), undefined)
    assert.deepEqual(await node.api.leases.list(node.ctx), [])
  }

  it('of cri-shim, before the note: the next pull takes the blob, and the ingest goes', async () => {
    assert.match(await crash('opened', 'the note is opened', () => node.shim.end('SIGKILL')), /^UNAVAILABLE/)
    await restart(node)
    await isWhole('opened', 1)
  })

  it('of cri-shim, after the note: the ingest goes with the next start', async () => {
    assert.match(await crash('ended', 'the ingest is ended', () => node.shim.end('SIGKILL')), /^UNAVAILABLE/)
    await restart(node)
    assert.deepEqual([await namesOf(layers.get('ended') ?? ''), await ingests()], [1, []])
    await isWhole('ended', 1)
  })

  it('of containerd, before the note: the next pull brings the image, from what is there', async () => {
    assert.match(await crash('away', 'the note is opened', () => node.containerd.end('SIGKILL')), /^UNAVAILABLE/)
    await node.containerd.start()
    await eventually('containerd is there for cri-shim', async () => node.cri.image.ListImages({}).then(() => true, () => false))
    await isWhole('away', 1)
  })
})
