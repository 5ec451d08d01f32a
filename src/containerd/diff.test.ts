import assert from 'node:assert/strict'
import { it } from 'node:test'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import type { ContainerdClient } from './client.ts'
import { DiffService, syncsLayers } from './diff.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const overlay = { type: 'overlay', source: 'overlay', target: '', options: ['workdir=/s/2/work', 'upperdir=/s/2/fs', 'lowerdir=/s/1/fs'] }
const bind = { type: 'bind', source: '/s/1/fs', target: '', options: ['rw', 'rbind'] }

function setup(version: string, syncFileSystem: (path: string) => Promise<void> = async () => undefined): { readonly diff: DiffService; readonly requests: object[] } {
  const requests: object[] = []
  const call = async (_ctx: unknown, _service: unknown, _method: unknown, request: object): Promise<object> => {
    requests.push(request)
    return { applied: { digest: 'sha256:diff' } }
  }
  return { requests, diff: new DiffService({ call: call as ContainerdClient['call'] }, { introspection: { version: async () => ({ version, revision: '' }) }, syncFileSystem }) }
}

it('knows from its version whether containerd syncs layers', () => {
  for (const version of ['1.7.14', 'v1.7.14', '1.7.24~ds1', '1.10.0', '2.0.0', 'v2.1.9+unknown', '2.4.0-beta.0', '10.0.0']) assert.equal(syncsLayers(version), true, version)
  for (const version of ['1.6.20~ds1', '1.6.38', '1.7.13', 'v1.7.0', '0.9.1', '', 'unknown']) assert.equal(syncsLayers(version), false, version)
})

for (const [version, own] of [['1.6.20~ds1', true], ['1.7.24', false], ['somebody’s own', true]] as const) {
  it(`a layer that is to be on the disk is written there ${own ? 'here' : 'by containerd'}: ${version}`, async () => {
    const synced: string[] = []
    const { diff, requests } = setup(version, async (path) => void synced.push(path))
    for (const mount of [overlay, bind]) assert.equal(await diff.apply(ctx, { digest: 'sha256:layer' }, [mount], { syncFs: true }), 'sha256:diff')
    assert.deepEqual(requests.map((request) => 'sync_fs' in request && request.sync_fs), [true, true])
    assert.deepEqual(synced, own ? ['/s/2/fs', '/s/1/fs'] : [])
    // What has a file system of its own is unmounted, and nobody asked for the last one.
    await diff.apply(ctx, { digest: 'sha256:layer' }, [{ type: 'ext4', source: '/dev/loop0', target: '', options: [] }], { syncFs: true })
    await diff.apply(ctx, { digest: 'sha256:layer' }, [overlay])
    assert.equal(synced.length, own ? 2 : 0)
    assert.deepEqual(requests.map((request) => 'sync_fs' in request), [true, true, true, false])
  })
}

it('a layer that cannot be written to the disk is none', async () => {
  const { diff } = setup('1.6.20', async () => Promise.reject(new Error('sync: error syncing: Input/output error')))
  await assert.rejects(diff.apply(ctx, { digest: 'sha256:layer' }, [overlay], { syncFs: true }), /layer sha256:layer cannot be written to the disk \(image_pull_with_sync_fs\): sync: error syncing: Input\/output error/)
})
