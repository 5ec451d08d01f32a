import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { describe, it } from 'node:test'
import { Code, CriError, notFound } from '../errors/cri-error.ts'
import { type Mount, MountPropagation } from '../generated/cri.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import type { Container, Image } from '../state/records.ts'
import { Layout } from '../state/status-file.ts'
import { checkImageMount, imageVolumeLabels, mountedBy, mountImageVolumes, removeImageViews, withImageRefs } from './image-volumes.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const spec = (image: string): NonNullable<Mount['image']> => ({ image, annotations: {}, user_specified_image: 'registry.k8s.io/data:1', runtime_handler: '', image_ref: '' })
const mount = (overrides: Partial<Mount>): Mount => ({
  container_path: '/c', host_path: '', readonly: true, selinux_relabel: false, propagation: 0, uidMappings: [], gidMappings: [], recursive_read_only: false, image: spec('sha256:1'), image_sub_path: '', ...overrides,
})
const image = { id: 'sha256:1', references: ['registry.k8s.io/data:1'], chainId: 'chain' } as unknown as Image

describe('an image mount', () => {
  it('that contradicts itself is refused, by the word that the kubelet knows', () => {
    const cases: readonly (readonly [wrong: Partial<Mount>, text: RegExp])[] = [
      [{ image: spec('') }, /image\.image is empty/], [{ host_path: '/h' }, /a host path or of an image, not of both/], [{ readonly: false }, /readonly must be true/],
      [{ propagation: MountPropagation.PROPAGATION_BIDIRECTIONAL }, /bidirectional propagation/], [{ image_sub_path: '/etc' }, /image_sub_path "\/etc" must be relative/],
    ]
    for (const [wrong, text] of cases) {
      assert.throws(() => checkImageMount(mount(wrong)), (error) => error instanceof CriError && error.code === Code.INVALID_ARGUMENT && text.test(error.message) && error.message.startsWith('ImageVolumeMountFailed: mount /c of image '))
    }
    assert.throws(() => checkImageMount(mount({ image: null, host_path: '/h', image_sub_path: 'etc' })), /image_sub_path goes only with an image/)
    for (const right of [{}, { image: null, host_path: '/h', readonly: false }, { propagation: MountPropagation.PROPAGATION_HOST_TO_CONTAINER }, { recursive_read_only: true }]) checkImageMount(mount(right))
  })

  it('is reported with the id of the image', () => {
    const mounts = [mount({ image: null, host_path: '/h' }), mount({ image: spec('registry.k8s.io/data:1') })]
    assert.deepEqual(withImageRefs(mounts, [{ index: 1, mount: mounts[1] ?? mount({}), image }]).map((each) => each.image?.image_ref), [undefined, 'sha256:1'])
  })

  it('keeps its view by a label of the container, and removes what the labels name, nothing else', async () => {
    const labels = imageVolumeLabels('c1', 'overlayfs', [{ index: 3, mount: mount({}), image }])
    assert.deepEqual(labels, { 'containerd.io/gc.ref.snapshot.overlayfs/image-volume-3': 'c1-image-volume-3' })
    const removed: string[] = []
    const containerd = { snapshots: { remove: async (_: unknown, snapshotter: string, key: string) => void removed.push(`${snapshotter}:${key}`), view: async () => [] } }
    await removeImageViews({ containerd }, ctx, { labels: { ...labels, 'containerd.io/gc.ref.snapshot.overlayfs': 'other', 'containerd.io/gc.ref.snapshot.overlayfs/mine': 'other', app: 'x' } })
    assert.deepEqual(removed, ['overlayfs:c1-image-volume-3'])
  })

  it('that fails says which, and the others are waited for', async () => {
    let slowEnded = false
    const deps = {
      layout: new Layout('/root', '/state'),
      containerd: { snapshots: { remove: async () => undefined, view: async () => [] } },
      host: {
        unmount: async () => undefined, removeTree: async () => undefined, withIdmapped: async () => { throw new TypeError('the pod has no user namespace') },
        mountImage: async (_: unknown, dir: string) => {
          if (dir.endsWith('/0')) throw notFound('sub path "x" of the image does not exist')
          await new Promise((resolve) => { setImmediate(resolve) })
          slowEnded = true
        },
      },
    }
    const volumes = [mount({ image_sub_path: 'x' }), mount({ container_path: '/d' })].map((each, index) => ({ index, mount: each, image }))
    await assert.rejects(mountImageVolumes(deps, ctx, { id: 'c1', snapshotter: 'overlayfs', volumes, userns: undefined, mountLabel: '' }), (error) => error instanceof CriError && error.code === Code.NOT_FOUND
      && error.message === 'ImageVolumeMountFailed: mount /c of image registry.k8s.io/data:1: sub path "x" of the image does not exist')
    assert.ok(slowEnded)
  })
})

it('an image of one layer is a file system of its own, with a label when that is asked for; other snapshotters\' mounts stay as they are without', async () => {
  const state = await mkdtemp(join(tmpdir(), 'cri-shim-label-'))
  const seen: Record<string, readonly { readonly type: string; readonly options: readonly string[] }[]> = {}
  const views = [[{ type: 'overlay', source: 'overlay', target: '', options: ['lowerdir=/2:/1'] }], [{ type: 'bind', source: '/1', target: '', options: ['ro', 'rbind'] }], [{ type: 'bind', source: '/1', target: '', options: ['ro', 'rbind'] }]]
  const deps = {
    layout: new Layout('/root', state), containerd: { snapshots: { remove: async () => undefined, view: async (_: unknown, __: string, key: string) => views[Number(key.at(-1))] ?? [] } },
    host: { unmount: async () => undefined, removeTree: async () => undefined, withIdmapped: async () => assert.fail('no user namespace'), mountImage: async (mounts: typeof views[0], dir: string) => { seen[basename(dir)] = mounts } },
  }
  const volumes = [true, true, false].map((selinux_relabel, index) => ({ index, mount: mount({ selinux_relabel }), image }))
  const label = 'system_u:object_r:container_file_t:s0:c1,c2'
  try {
    await mountImageVolumes(deps, ctx, { id: 'c1', snapshotter: 'overlayfs', volumes, userns: undefined, mountLabel: label })
    const dir = join(state, 'containers/c1/image-volumes/1/nothing')
    assert.deepEqual(seen['0']?.[0]?.options, ['lowerdir=/2:/1', `context="${label}"`])
    assert.deepEqual([seen['1']?.[0]?.type, seen['1']?.[0]?.options], ['overlay', [`lowerdir=/1:${dir}`, `context="${label}"`]])
    assert.deepEqual(await readdir(dir), [])
    assert.deepEqual(seen['2']?.[0]?.options, [`lowerdir=/1:${join(dir, '../../2/nothing')}`])
    await mountImageVolumes(deps, ctx, { id: 'c1', snapshotter: 'native', volumes: volumes.slice(2), userns: undefined, mountLabel: label })
    assert.deepEqual(seen['2'], views[2])
  } finally {
    await rm(state, { recursive: true })
  }
})

it('an image is in use by who mounts it, also by name as containerd\'s own plugin has it', () => {
  const container = (id: string, ...mounts: Mount[]): Container => ({ id, metadata: { config: { mounts } } }) as unknown as Container
  const other = container('other', mount({ image: null, host_path: '/h' }), mount({ image: { ...spec('sha256:2'), image_ref: 'sha256:2' } }))
  assert.equal(mountedBy([other], image), undefined)
  assert.equal(mountedBy([other, container('id', mount({ image: { ...spec('x'), image_ref: 'sha256:1' } }))], image)?.id, 'id')
  assert.equal(mountedBy([other, container('name', mount({ image: spec('registry.k8s.io/data:1') }))], image)?.id, 'name')
})
