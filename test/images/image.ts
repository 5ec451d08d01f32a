import { promisify } from 'node:util'
import { constants, gzip, zstdCompress } from 'node:zlib'
import type { ContentDir, Descriptor } from './layout.ts'
import { sha256 } from './layout.ts'
import { type TarEntry, tar } from './tar.ts'
import type { Architecture } from './tiny-elf.ts'

/** The two manifest formats that registries serve: OCI image specification, and Docker image manifest version 2, schema 2. */
export type ImageFormat = 'oci' | 'docker'
export type Compression = 'gzip' | 'zstd' | 'none'

/** The part of an image's configuration that containers see; names as in the OCI image specification. */
export interface ImageRunConfig {
  readonly User?: string
  readonly Env?: readonly string[]
  readonly Entrypoint?: readonly string[]
  readonly Cmd?: readonly string[]
  readonly WorkingDir?: string
  readonly Labels?: Readonly<Record<string, string>>
  readonly StopSignal?: string
  readonly Volumes?: Readonly<Record<string, object>>
  readonly ExposedPorts?: Readonly<Record<string, object>>
}

/** A layer as it is stored, with the digest of its uncompressed tar, which the image's configuration lists. */
export interface Layer {
  readonly descriptor: Descriptor
  readonly diffId: string
}

const mediaTypes = {
  oci: {
    index: 'application/vnd.oci.image.index.v1+json',
    manifest: 'application/vnd.oci.image.manifest.v1+json',
    config: 'application/vnd.oci.image.config.v1+json',
    layer: { gzip: 'application/vnd.oci.image.layer.v1.tar+gzip', zstd: 'application/vnd.oci.image.layer.v1.tar+zstd', none: 'application/vnd.oci.image.layer.v1.tar' },
  },
  docker: {
    index: 'application/vnd.docker.distribution.manifest.list.v2+json',
    manifest: 'application/vnd.docker.distribution.manifest.v2+json',
    config: 'application/vnd.docker.container.image.v1+json',
    layer: { gzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip', zstd: 'application/vnd.docker.image.rootfs.diff.tar.zstd', none: 'application/vnd.docker.image.rootfs.diff.tar' },
  },
} as const

const compressors = {
  gzip: async (data: Buffer): Promise<Buffer> => promisify(gzip)(data, { level: constants.Z_DEFAULT_COMPRESSION }),
  zstd: async (data: Buffer): Promise<Buffer> => promisify(zstdCompress)(data),
  none: async (data: Buffer): Promise<Buffer> => Promise.resolve(data),
} as const

/** Stores one layer. A tar that is ready (a large one for a benchmark) may be given in place of its entries. */
export async function addLayer(content: ContentDir, entries: readonly TarEntry[] | Buffer, format: ImageFormat = 'oci', compression: Compression = 'gzip'): Promise<Layer> {
  const archive = Buffer.isBuffer(entries) ? entries : tar(entries)
  return { descriptor: await content.blob(mediaTypes[format].layer[compression], await compressors[compression](archive)), diffId: sha256(archive) }
}

/** Stores an image's configuration and manifest. Nothing in it depends on the time or the machine. */
export async function addImage(content: ContentDir, layers: readonly Layer[], architecture: Architecture, config: ImageRunConfig, format: ImageFormat = 'oci'): Promise<Descriptor> {
  const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  const types = mediaTypes[format]
  const configDescriptor = await content.json(types.config, {
    created: '1970-01-01T00:00:00Z',
    architecture,
    os: 'linux',
    config: { ...config, Env: [path, ...config.Env ?? []] },
    rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) },
    history: layers.map(() => ({ created: '1970-01-01T00:00:00Z', created_by: 'test/images' })),
  })
  const manifest = await content.json(types.manifest, { schemaVersion: 2, mediaType: types.manifest, config: configDescriptor, layers: layers.map((layer) => layer.descriptor) })
  return { ...manifest, platform: { os: 'linux', architecture, ...(architecture === 'arm64' ? { variant: 'v8' } : {}) } }
}

/** Stores an index (a manifest list) over manifests of one format. */
export async function addIndex(content: ContentDir, manifests: readonly Descriptor[], format: ImageFormat = 'oci'): Promise<Descriptor> {
  return content.json(mediaTypes[format].index, { schemaVersion: 2, mediaType: mediaTypes[format].index, manifests })
}
