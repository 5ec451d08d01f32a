import assert from 'node:assert/strict'
import { mkdir, mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { ResolvedMount } from '../oci-spec/input.ts'
import { Layout, writeJson } from '../state/status-file.ts'
import { idmappedPath, mapHere, readIdmapped } from './user-namespace.ts'

const ids = [{ container_id: 0, host_id: 65536, length: 65536 }]
const pod = { uids: [{ containerID: 0, hostID: 65536, size: 65536 }], gids: [{ containerID: 0, hostID: 65536, size: 65536 }] }
const mount = (hostPath: string, more: Partial<ResolvedMount> = {}): ResolvedMount => ({ origin: 'cri', containerPath: `/in${hostPath}`, hostPath, readonly: false, ...more })

test('volumes with the ids of the pod are mapped here; the others are left to the runtime', () => {
  const other = [{ container_id: 0, host_id: 1, length: 65536 }]
  const mounts = [
    mount('/plain'), mount('/mapped', { uidMappings: ids, gidMappings: ids, readonly: true }), mount('/half', { uidMappings: ids }),
    mount('/other', { uidMappings: other, gidMappings: other }), mount('/second', { uidMappings: ids, gidMappings: ids }), mount('/empty', { uidMappings: [], gidMappings: [] }),
  ]
  const { mounts: result, idmapped } = mapHere(mounts, pod, '/run/c/idmap')
  assert.deepEqual(idmapped, [{ source: '/mapped', target: '/run/c/idmap/volume-0' }, { source: '/second', target: '/run/c/idmap/volume-1' }])
  assert.deepEqual(result, [
    mounts[0], { origin: 'cri', containerPath: '/in/mapped', hostPath: '/run/c/idmap/volume-0', readonly: true }, mounts[2],
    mounts[3], { origin: 'cri', containerPath: '/in/second', hostPath: '/run/c/idmap/volume-1', readonly: false }, mounts[5],
  ])
  assert.deepEqual(mapHere(mounts, undefined, '/run'), { mounts, idmapped: [] })
})

test('what is to be mapped is found again after a restart, and nothing else is taken for it', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-userns-'))
  const layout = new Layout(dir.path, dir.path)
  await mkdir(layout.containerDir('c'), { recursive: true })
  assert.deepEqual(await readIdmapped(layout, 'c'), [])
  const idmapped = [{ source: '/a', target: '/b' }]
  await writeJson(idmappedPath(layout, 'c'), idmapped)
  assert.deepEqual(await readIdmapped(layout, 'c'), idmapped)
  for (const text of ['{}', '[1]', '[{"source":"/a"}]', '[{"source":"/a","target":3}]']) {
    await writeFile(idmappedPath(layout, 'c'), text)
    await assert.rejects(readIdmapped(layout, 'c'), TypeError)
  }
})
