import { createHash, randomUUID } from 'node:crypto'
import { access, mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** What a manifest or an index says of a blob (OCI image specification, "Content descriptors"). */
export interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
  readonly platform?: { readonly os: string; readonly architecture: string; readonly variant?: string }
  readonly annotations?: Readonly<Record<string, string>>
}

/** The annotation of an image layout's index.json that holds an image's full name: `registry.k8s.io/pause:3.10`. */
export const refNameAnnotation = 'org.opencontainers.image.ref.name'

export const sha256 = (data: Uint8Array): string => `sha256:${createHash('sha256').update(data).digest('hex')}`

/** Where an OCI image layout keeps a blob. */
export const blobPath = (dir: string, digest: string): string => join(dir, 'blobs', ...digest.split(':'))

/**
 * A directory of images: an OCI image layout (blobs/sha256/…, index.json) whose index names every image in full. Several processes may
 * build into one directory at a time: a blob and the index appear whole or not at all.
 */
export class ContentDir {
  readonly dir: string
  readonly #named: Descriptor[] = []

  constructor(dir: string) {
    this.dir = dir
  }

  /** Stores bytes under their digest. */
  async blob(mediaType: string, data: Uint8Array): Promise<Descriptor> {
    const descriptor = { mediaType, digest: sha256(data), size: data.length }
    const path = blobPath(this.dir, descriptor.digest)
    try {
      await access(path)
    } catch {
      await mkdir(join(path, '..'), { recursive: true })
      await replaceFile(path, data)
    }
    return descriptor
  }

  /** Stores a JSON document: the same value gives the same bytes. */
  async json(mediaType: string, value: unknown): Promise<Descriptor> {
    return this.blob(mediaType, Buffer.from(JSON.stringify(value)))
  }

  /** Gives a manifest or an index a full name; `finish` makes the names visible. */
  name(ref: string, descriptor: Descriptor): void {
    this.#named.push({ ...descriptor, annotations: { [refNameAnnotation]: ref } })
  }

  /** Writes the index. Names of an earlier index that were not given again stay. */
  async finish(): Promise<void> {
    const names = new Map<string, Descriptor>()
    for (const found of [...await readIndex(this.dir), ...this.#named]) names.set(found.annotations?.[refNameAnnotation] ?? found.digest, found)
    await replaceFile(join(this.dir, 'oci-layout'), Buffer.from('{"imageLayoutVersion":"1.0.0"}'))
    const index = { schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', manifests: [...names.values()] }
    await replaceFile(join(this.dir, 'index.json'), Buffer.from(JSON.stringify(index, undefined, 2)))
  }
}

/** The named images of a layout; none when there is no index yet. */
export async function readIndex(dir: string): Promise<readonly Descriptor[]> {
  let text: string
  try {
    text = await readFile(join(dir, 'index.json'), 'utf8')
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return []
    throw error
  }
  return (JSON.parse(text) as { manifests: Descriptor[] }).manifests
}

async function replaceFile(path: string, data: Uint8Array): Promise<void> {
  const temporary = `${path}.${randomUUID()}`
  await writeFile(temporary, data)
  await rename(temporary, path)
}
