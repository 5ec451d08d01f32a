import { readFile } from 'node:fs/promises'
import type { RecordedRequest } from '../test/fixtures/registry/registry.ts'
import { blobPath, type Descriptor, readIndex, refNameAnnotation } from '../test/images/layout.ts'
import type { SideName } from './statistics.ts'

/** What a registry served of the blobs (layers and configuration) of an image. */
export interface Served {
  readonly requests: number
  /** Of blobs, those that were not read to their end included. */
  readonly bytes: number
}

export interface ServedToMany {
  readonly callers: number
  readonly image: { readonly blobs: number; readonly bytes: number }
  /** Of all rounds. */
  readonly most: Readonly<Record<SideName, Served>>
}

export function servedIn(requests: readonly RecordedRequest[]): Served {
  const blobs = requests.filter(({ kind, method }) => kind === 'blob' && method === 'GET')
  return { requests: blobs.length, bytes: blobs.reduce((sum, { bytes }) => sum + bytes, 0) }
}

export function mostOf(a: Served, b: Served): Served {
  return { requests: Math.max(a.requests, b.requests), bytes: Math.max(a.bytes, b.bytes) }
}

/** Whether cri-shim's callers had each blob downloaded once, all together. */
export function servedOnce({ image, most }: ServedToMany): boolean {
  return most.shim.requests === image.blobs && most.shim.bytes === image.bytes
}

/** The blobs of an image without an index in a content directory. */
export async function blobsOf(contentDir: string, ref: string): Promise<ServedToMany['image']> {
  const manifest = (await readIndex(contentDir)).find(({ annotations }) => annotations?.[refNameAnnotation] === ref)
  if (manifest === undefined) throw new Error(`there is no image ${ref} in ${contentDir}`)
  const { config, layers } = JSON.parse(await readFile(blobPath(contentDir, manifest.digest), 'utf8')) as { readonly config: Descriptor; readonly layers: readonly Descriptor[] }
  return { blobs: layers.length + 1, bytes: [config, ...layers].reduce((sum, { size }) => sum + size, 0) }
}
