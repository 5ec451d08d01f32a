import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { signalNumber } from '../container/stop-container.ts'
import { Code, CriError } from '../errors/cri-error.ts'
import { type Container as CriContainer, type ListContainersResponse, type PodSandboxConfig, Signal } from '../generated/cri.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import { fromGoJson } from '../state/go-json.ts'
import { ImageStore } from '../state/image-store.ts'
import type { Container, Image } from '../state/records.ts'
import { containerStatusMessage, criSignal, signalName } from './container-message.ts'
import { EntryEncoder } from './encoding.ts'
import { filterContainers, labelsMatch } from './filters.ts'
import { checkLabels, checkNamespaces, sandboxMetadata } from './validate.ts'

const refused = (error: unknown): boolean => error instanceof CriError && error.code === Code.INVALID_ARGUMENT

describe('signals', () => {
  it('of CRI are sent as what they are called, and reported as what is sent', () => {
    for (const [name, value] of Object.entries(Signal)) {
      if (value === Signal.RUNTIME_DEFAULT) continue
      const spelled = signalName(value) ?? assert.fail(name)
      assert.equal(signalNumber(signalName(criSignal(spelled)) ?? ''), signalNumber(spelled), name)
    }
    assert.equal(criSignal(''), Signal.SIGTERM)
    assert.equal(signalName(999), undefined)
  })
})

it('mounted images are reported by id, also in containers of containerd\'s own plugin, which keeps the name alone', () => {
  const images = new ImageStore()
  images.put({ id: 'sha256:cafe', references: ['registry.k8s.io/data:1'] } as unknown as Image)
  const config = fromGoJson('runtime.v1.ContainerConfig', {
    mounts: [{ image: { image: 'registry.k8s.io/data:1' } }, { image: { image: 'sha256:cafe' } }, { image: { image: 'x', image_ref: 'sha256:f00d' } }, { image: { image: 'gone' } }, { host_path: '/h' }],
  })
  const container = { id: 'c', metadata: { config, imageRef: '', logPath: '', stopSignal: '' }, status: { state: 'created' } } as unknown as Container
  assert.deepEqual(containerStatusMessage(container, images).mounts?.map((mount) => mount.image?.image_ref), ['sha256:cafe', 'sha256:cafe', 'sha256:f00d', '', undefined])
})

describe('List answers', () => {
  const encoder = new EntryEncoder<{ readonly id: string }>('runtime.v1.Container', ({ id }) => ({ id, labels: { a: 'b' } }))
  const decode = (bytes: Buffer): readonly CriContainer[] => (messageCodec(criProtos(), 'runtime.v1.ListContainersResponse').deserialize(bytes) as ListContainersResponse).containers

  it('put together from their entries are what a whole encoding is', () => {
    const records = [{ id: 'a' }, { id: 'b'.repeat(300) }, { id: 'c'.repeat(20_000) }]
    assert.deepEqual(decode(encoder.list(records)).map(({ id }) => id), records.map(({ id }) => id))
    assert.equal(encoder.entry(records[0] ?? assert.fail()), encoder.entry(records[0] ?? assert.fail()), 'encoded once')
    assert.equal(encoder.list([]).length, 0)
  })

  it('come in pages without losing one, and in one empty page when there is nothing', () => {
    for (const count of [0, 1, 2, 3, 4, 5]) {
      const records = Array.from({ length: count }, (_, at) => ({ id: String(at) }))
      const pages = [...encoder.pages(records, 2)].map((page) => decode(page).map(({ id }) => id))
      assert.deepEqual(pages.flat(), records.map(({ id }) => id))
      assert.equal(pages.length, Math.max(1, Math.ceil(count / 2)))
    }
  })
})

describe('filters', () => {
  const container = (id: string, sandboxId: string, state: string, labels: Record<string, string>): Container => ({ id, metadata: { sandboxId, config: { labels } }, status: { state } }) as unknown as Container
  const all = [container('abc1', 's1', 'running', { app: 'web' }), container('abd2', 's2', 'exited', { app: 'web', tier: 'x' }), container('e3', 's1', 'created', {})]
  const found = (filter: Partial<{ id: string; pod_sandbox_id: string; label_selector: Record<string, string>; state: { state: number } | null }>): string[] =>
    [...filterContainers(all, { id: '', pod_sandbox_id: '', label_selector: {}, state: null, ...filter })].map(({ id }) => id)

  it('let through what fits all of them; ids may be short', () => {
    assert.deepEqual(found({}), ['abc1', 'abd2', 'e3'])
    assert.deepEqual(found({ id: 'ab' }), ['abc1', 'abd2'])
    assert.deepEqual(found({ pod_sandbox_id: 's1', state: { state: 0 } }), ['e3'])
    assert.deepEqual(found({ label_selector: { app: 'web' }, state: { state: 2 } }), ['abd2'])
    assert.deepEqual(found({ id: 'nobody' }), [])
    assert.equal(labelsMatch({}, { constructor: 'x' }), false)
  })
})

describe('validation', () => {
  const config = (fields: object): PodSandboxConfig => fromGoJson('runtime.v1.PodSandboxConfig', fields)

  it('names the field that is wrong', () => {
    assert.throws(() => sandboxMetadata(null, 'config'), /config is missing/)
    for (const [metadata, message] of [
      [{}, /metadata\.name is empty/], [{ name: 'a' }, /metadata\.namespace is empty/], [{ name: 'a/b', namespace: 'n', uid: 'u' }, /metadata\.name "a\/b" must not/],
      [{ name: 'a', namespace: 'n', uid: 'x'.repeat(254) }, /metadata\.uid is longer/],
    ] as const) assert.throws(() => sandboxMetadata(config({ metadata }), 'config'), (error) => refused(error) && message.test((error as Error).message))
  })

  it('keeps labels from speaking for the runtime, and from being too long for containerd', () => {
    checkLabels({ 'io.kubernetes.pod.name': 'x', a: 'b'.repeat(4000) }, 'labels')
    for (const labels of [{ 'io.cri-containerd.kind': 'x' }, { 'containerd.io/gc.root': 'x' }, { a: 'ü'.repeat(2048) }]) assert.throws(() => checkLabels(labels, 'labels'), refused)
  })

  it('refuses namespaces that a pod cannot have', () => {
    for (const options of [{ pid: 3 }, { network: 1 }, { ipc: 9 }]) assert.throws(() => checkNamespaces(config({ linux: { security_context: { namespace_options: options } } })), refused)
    const host = { linux: { security_context: { namespace_options: { network: 2 } } } }
    checkNamespaces(config({ ...host, port_mappings: [{ host_port: 80, container_port: 80 }] }))
    assert.throws(() => checkNamespaces(config({ ...host, port_mappings: [{ host_port: 80, container_port: 81 }] })), refused)
  })
})
