import { createHash } from 'node:crypto'
import { snapshotLabels } from '../../containerd/snapshots.ts'
import { Code, CriError, failedPrecondition } from '../../errors/cri-error.ts'
import { type ImageConfig, imageConfigOf } from '../../oci-spec/image-config.ts'
import { digestProblem } from '../../registry-mirrors/digest.ts'
import { mediaType } from '../../registry-mirrors/media-types.ts'
import type { Descriptor } from '../../registry-mirrors/registry-client.ts'
import type { Artifact } from '../../state/records.ts'
import { artifactOf, isArtifact } from './artifact.ts'

export interface Platform {
  readonly os: string
  /** As GOARCH: amd64, arm64, arm. */
  readonly architecture: string
  readonly variant?: string
}

/** With what the manifest says of a layer to snapshotters. */
export interface LayerDescriptor extends Descriptor {
  readonly annotations?: Readonly<Record<string, string>>
}

/** What a manifest lists. */
export interface Manifest {
  readonly config: Descriptor
  readonly layers: readonly LayerDescriptor[]
  /** Undefined for a container image. */
  readonly artifact: Artifact | undefined
}

/** An image's configuration document, checked. */
export interface ConfigDocument {
  readonly config: ImageConfig
  /** Of the uncompressed layers, lowest first. */
  readonly diffIds: readonly string[]
  readonly document: Readonly<Record<string, unknown>>
}

/** More layers than any file system can stack, and than any builder makes. */
const maxLayers = 512
const maxArtifactLayers = 8192

export function isIndex(type: string): boolean {
  return type === mediaType.ociIndex || type === mediaType.dockerList
}

/** The manifest in an index that is for `platform`: the exact variant before a compatible one, in the order of the index. */
export function choosePlatform(bytes: Buffer, platform: Platform, what: string): Descriptor {
  const entries = list(json(bytes, what)['manifests'], `${what}: manifests`)
  const offered: string[] = []
  const plain: Descriptor[] = []
  let best: { readonly descriptor: Descriptor; readonly rank: number } | undefined
  for (const entry of entries) {
    const { platform: declared } = entry
    const { os, architecture, variant } = (declared ?? {}) as Readonly<Record<string, unknown>>
    // An entry without a platform, or with "unknown", is an attestation or the like.
    if (declared === undefined || declared === null) plain.push(descriptorOf(entry, what))
    if (typeof os !== 'string' || typeof architecture !== 'string' || os === 'unknown') continue
    offered.push([os, architecture, variant].filter((part) => typeof part === 'string' && part !== '').join('/'))
    const rank = platformRank({ os, architecture, ...(typeof variant === 'string' ? { variant } : {}) }, platform)
    if (rank > (best?.rank ?? 0)) best = { descriptor: descriptorOf(entry, what), rank }
  }
  // An artifact is for every platform: an index over one need not say which.
  const [only] = plain
  if (best === undefined && offered.length === 0 && plain.length === 1 && only !== undefined) return only
  if (best === undefined) {
    throw new CriError(Code.NOT_FOUND, `${what} has no image for ${platform.os}/${platform.architecture}; it has ${offered.length === 0 ? 'none that names its platform' : offered.slice(0, 12).join(', ')}`, { reason: 'NoPlatform' })
  }
  return best.descriptor
}

function platformRank(offered: Platform, wanted: Platform): number {
  if (offered.os !== wanted.os || offered.architecture !== wanted.architecture) return 0
  const normal = wanted.architecture === 'arm64' ? 'v8' : wanted.architecture === 'amd64' ? 'v1' : undefined
  const variant = offered.variant ?? normal
  const own = wanted.variant ?? normal
  if (variant === own) return 3
  // A lower variant runs on a higher one: armv6 on armv7.
  if (variant !== undefined && own !== undefined && variant < own) return 2
  return variant === undefined || own === undefined ? 1 : 0
}

export function parseManifest(bytes: Buffer, what: string): Manifest {
  const document = json(bytes, what)
  const layers = list(document['layers'], `${what}: layers`)
  if (typeof document['config'] !== 'object' || document['config'] === null) throw failedPrecondition(`${what} has no config: it is no container image`)
  const config = descriptorOf(document['config'] as Record<string, unknown>, what)
  const descriptors = layers.map((layer) => layerOf(layer, what))
  const artifactType = typeof document['artifactType'] === 'string' ? document['artifactType'] : ''
  const artifact = isArtifact(config.mediaType, artifactType, !descriptors.every((layer) => isLayerType(layer.mediaType)))
  const limit = artifact ? maxArtifactLayers : maxLayers
  if (layers.length > limit) throw failedPrecondition(`${what} has ${layers.length} layers; the limit is ${limit}`)
  if (artifact) return { config, layers: descriptors, artifact: artifactOf(artifactType === '' ? config.mediaType : artifactType, descriptors.map((descriptor, index) => ({ descriptor, annotations: annotationsOf(layers[index]) }))) }
  for (const layer of descriptors) {
    if (!isLayerType(layer.mediaType)) throw failedPrecondition(`${what} has a layer of type ${layer.mediaType}: it is no container image that can be run (an encrypted or a foreign layer)`, { reason: 'NotAnImage' })
  }
  return { config, layers: descriptors, artifact: undefined }
}

/** Without the annotations that nobody looks at. */
function layerOf(layer: Readonly<Record<string, unknown>>, what: string): LayerDescriptor {
  const annotations = snapshotLabels(Object.fromEntries(Object.entries(annotationsOf(layer)).filter((entry): entry is [string, string] => typeof entry[1] === 'string')))
  return { ...descriptorOf(layer, what), ...(Object.keys(annotations).length === 0 ? {} : { annotations }) }
}

function annotationsOf(layer: Readonly<Record<string, unknown>> | undefined): Readonly<Record<string, unknown>> {
  const annotations = layer?.['annotations']
  return typeof annotations === 'object' && annotations !== null ? annotations as Record<string, unknown> : {}
}

/** nydus' blobs are for its snapshotter, which brings them by itself. */
function isLayerType(type: string): boolean {
  return type === 'application/vnd.oci.image.layer.nydus.blob.v1' || /^application\/vnd\.oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?$/.test(type) || /^application\/vnd\.docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?$/.test(type)
}

export function parseConfig(bytes: Buffer, manifest: Manifest, what: string): ConfigDocument {
  const document = json(bytes, `the configuration of ${what}`)
  const rootfs = document['rootfs']
  const diffIds = typeof rootfs === 'object' && rootfs !== null ? (rootfs as Readonly<Record<string, unknown>>)['diff_ids'] : undefined
  if (!Array.isArray(diffIds) || !diffIds.every((id): id is string => typeof id === 'string' && digestProblem(id) === undefined)) throw failedPrecondition(`the configuration of ${what} has no rootfs.diff_ids: it is no container image`)
  if (diffIds.length !== manifest.layers.length) throw failedPrecondition(`${what} has ${manifest.layers.length} layers and its configuration names ${diffIds.length}: the image is broken; build and push it again`)
  return { config: imageConfigOf(document['config']), diffIds, document }
}

/** The names of an image's committed snapshots, lowest first (OCI image-spec, "Layer ChainID"). */
export function chainIds(diffIds: readonly string[]): string[] {
  const chain: string[] = []
  for (const diffId of diffIds) {
    const parent = chain.at(-1)
    chain.push(parent === undefined ? diffId : `sha256:${createHash('sha256').update(`${parent} ${diffId}`).digest('hex')}`)
  }
  return chain
}

/** Bytes that an image takes as it travels: manifest, configuration, layers. */
export function imageSize(manifestBytes: number, manifest: Manifest): bigint {
  return BigInt(manifestBytes + manifest.config.sizeBytes) + manifest.layers.reduce((sum, layer) => sum + BigInt(layer.sizeBytes), 0n)
}

function json(bytes: Buffer, what: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'))
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  } catch (error) {
    throw failedPrecondition(`${what} is not JSON: the image is broken`, { cause: error })
  }
  throw failedPrecondition(`${what} is no JSON object: the image is broken`)
}

function list(value: unknown, what: string): readonly Readonly<Record<string, unknown>>[] {
  if (!Array.isArray(value) || !value.every((entry) => typeof entry === 'object' && entry !== null)) throw failedPrecondition(`${what} is no list of objects: the image is broken`)
  return value
}

function descriptorOf(entry: Readonly<Record<string, unknown>>, what: string): Descriptor {
  const { mediaType: type, digest, size } = entry
  if (typeof digest !== 'string' || digestProblem(digest) !== undefined) throw failedPrecondition(`${what} names a digest that is none: the image is broken`)
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) throw failedPrecondition(`${what} gives no size for ${digest}: the image is broken`)
  return { mediaType: typeof type === 'string' ? type : '', digest, sizeBytes: size }
}
