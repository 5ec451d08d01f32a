import { createCipheriv } from 'node:crypto'
import { type Compression, addImage, addLayer } from './image.ts'
import { ContentDir } from './layout.ts'
import { directory, file, tar } from './tar.ts'
import { hostArchitecture } from './tiny-elf.ts'

/**
 * Bytes that look like a program's: half of them from a cipher's key stream (they do not compress), half of them zero. The same seed
 * gives the same bytes.
 */
function filler(seed: number, sizeBytes: number): Buffer {
  const iv = Buffer.alloc(16)
  iv.writeUInt32BE(seed)
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), iv)
  const chunk = 64 * 1024
  const parts: Buffer[] = []
  for (let done = 0; done < sizeBytes; done += 2 * chunk) parts.push(cipher.update(Buffer.alloc(Math.min(chunk, sizeBytes - done))), Buffer.alloc(Math.max(0, Math.min(chunk, sizeBytes - done - chunk))))
  return Buffer.concat(parts)
}

export interface LargeImage {
  readonly ref: string
  readonly layers: number
  /** Uncompressed size of all layers together. */
  readonly sizeBytes: number
  readonly compression?: Compression
}

/** Adds an image of a given size to a content directory, for pull benchmarks and for tests of interrupted pulls. It is not runnable. */
export async function buildLargeImage(dir: string, { ref, layers, sizeBytes, compression = 'gzip' }: LargeImage): Promise<void> {
  const content = new ContentDir(dir)
  const perLayer = Math.ceil(sizeBytes / layers)
  const stored = []
  for (let layer = 0; layer < layers; layer++) {
    const name = `layer-${layer}`
    const filesPerLayer = 16
    const files = Array.from({ length: filesPerLayer }, (_, at) => file(`${name}/${at}`, filler(layer * filesPerLayer + at, Math.ceil(perLayer / filesPerLayer))))
    stored.push(await addLayer(content, tar([directory(name), ...files]), 'oci', compression))
  }
  content.name(ref, await addImage(content, stored, hostArchitecture(), { Cmd: ['/nothing'] }))
  await content.finish()
}
