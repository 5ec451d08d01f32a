import assert from 'node:assert/strict'
import { it } from 'node:test'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { removePluginImageMounts } from './plugin-image-mounts.ts'

const pod = 'a'.repeat(64)
const base = '/run/containerd/io.containerd.grpc.v1.cri/image-volumes'
const image = 'b'.repeat(64)

it('what the plugin keeps of images that a pod mounts goes, and nothing that is named otherwise', async () => {
  const done: string[] = []
  const note = (what: string) => async (...args: unknown[]): Promise<void> => void done.push([what, ...args.filter((arg) => typeof arg === 'string')].join(' '))
  const resources = [
    { type: 'snapshots/overlayfs', id: `${base}/${pod}/${image}` }, { type: 'snapshots/overlayfs', id: `${base}/${pod}/cafe` }, { type: 'content', id: `${base}/${pod}/${image}` },
    { type: 'snapshots/overlayfs', id: 'sha256:cafe' }, { type: 'snapshots/overlayfs', id: `${base}/${'c'.repeat(64)}/${image}` }, { type: 'snapshots/overlayfs', id: `/etc/../${base}/${pod}/${image}` },
    { type: 'snapshots/overlayfs', id: `/etc/image-volumes/${pod}/${image}` },
  ]
  const deps = {
    containerd: { leases: { resources: async () => resources, delete: note('lease') }, snapshots: { remove: note('snapshot') } },
    host: { unmount: note('unmount'), removeTree: note('remove') },
  }
  await removePluginImageMounts(deps, backgroundCtx(createLogger('fatal'), 'test'), pod)
  const gone = (name: string): string[] => [`unmount ${base}/${pod}/${name}`, `snapshot overlayfs ${base}/${pod}/${name}`]
  assert.deepEqual(done, [...gone(image), ...gone('cafe'), `remove ${base}/${pod}`, `lease ${pod}`])
})
