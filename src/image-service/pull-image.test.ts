import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { parseImageRef } from '../registry-mirrors/image-ref.ts'
import { pullNow } from './pull-image.ts'

test('an image that is removed between its pull and the answer is ABORTED: the same call may succeed now', async () => {
  const refreshed: string[] = []
  const deps = {
    pulls: { pull: async () => ({ id: 'sha256:1', names: ['docker.io/library/a:1'] }) },
    catalog: { refresh: async (_: unknown, name: string) => void refreshed.push(name) },
    images: { byId: () => undefined },
  } as unknown as Parameters<typeof pullNow>[0]
  const request = { ref: parseImageRef('a:1'), auth: {}, snapshotter: 'overlayfs', pinned: false } as unknown as Parameters<typeof pullNow>[2]
  await assert.rejects(pullNow(deps, backgroundCtx(createLogger('fatal'), 'test'), request), { code: Code.ABORTED, reason: 'ImageVanished', message: /docker\.io\/library\/a:1 .*pull it again/ })
  assert.deepEqual(refreshed, ['docker.io/library/a:1'])
})
