import { test } from 'node:test'
import { BoundedQueue } from '../../concurrency/bounded-queue.ts'
import type { ContentService } from '../../containerd/content.ts'
import { backgroundCtx } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import { parseImageRef } from '../../registry-mirrors/image-ref.ts'
import type { RegistryClient } from '../../registry-mirrors/registry-client.ts'
import { BlobFetcher, type PullSource, type WantedBlob } from './blobs.ts'
import { Precedence } from './precedence.ts'
import { PullProgress } from './progress.ts'

test('a layer that one pull holds back behind its lower ones comes at once when another pull waits for it', { timeout: 20_000 }, async (t) => {
  // Nobody is let go by a time-out.
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const ctx = backgroundCtx(createLogger('fatal'), 'test')
  const committing = Promise.withResolvers<void>()
  const disk = Promise.withResolvers<void>()
  const stored = new Set<string>()
  const content = {
    openWriter: async (_: unknown, { digest }: { readonly digest: string }) => (stored.has(digest) ? undefined : {
      offsetBytes: 0, isDirect: false, write: async () => undefined, filledTo: () => undefined, close: async () => undefined,
      commit: async () => {
        if (digest === 'sha256:lowest') {
          committing.resolve()
          await disk.promise
        }
        stored.add(digest)
      },
    }),
    setLabels: async () => undefined,
  }
  const registry = {
    openBlob: async () => ({ acceptsRanges: false, host: 'one', hosts: ['one'], close: () => undefined, stream: (async function* () { yield Buffer.alloc(10) })() }),
  }
  const blobs = new BlobFetcher({
    content: content as unknown as ContentService, registry: registry as unknown as RegistryClient, ranges: { parts: 1, fromBytes: 0 },
    transfers: new BoundedQueue({ name: 'transfers', concurrency: 4, maxWaiting: 10 }),
  })
  const source = (): PullSource => ({
    ref: parseImageRef('one/image:1'), auth: null, lease: 'lease', tracker: new PullProgress().begin('image'), precedence: new Precedence(),
    progress: () => undefined, watch: (transfer) => transfer(), served: () => undefined,
  })
  const wanted = (name: string, rank: number): WantedBlob => ({ descriptor: { mediaType: '', digest: `sha256:${name}`, sizeBytes: 10 }, labels: {}, rank })

  const first = source()
  const lowest = blobs.fetch(ctx, first, wanted('lowest', 0))
  await committing.promise
  const held = blobs.fetch(ctx, first, wanted('shared', 1))
  await blobs.fetch(ctx, source(), wanted('shared', 0))
  disk.resolve()
  await Promise.all([lowest, held])
})
