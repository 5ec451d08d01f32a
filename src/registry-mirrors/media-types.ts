/** The media types that are manifests and indexes (OCI image specification, Docker image manifest version 2 schema 2). */
export const mediaType = {
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
} as const

const manifestTypes: readonly string[] = Object.values(mediaType)

/** What is asked for when a name is resolved. */
export const acceptManifests = [...manifestTypes, '*/*'].join(', ')

export function isManifestType(type: string): boolean {
  return manifestTypes.includes(type)
}

/** Docker's format before 2016, without content digests for its configuration: no containerd of today runs it. */
export function isSchema1Type(type: string): boolean {
  return type === 'application/vnd.docker.distribution.manifest.v1+json' || type === 'application/vnd.docker.distribution.manifest.v1+prettyjws'
}

/** A Content-Type without its parameters. */
export function bareType(contentType: string | undefined): string {
  return (contentType ?? '').split(';')[0]?.trim().toLowerCase() ?? ''
}

/** The media type that a manifest's own bytes say, for registries whose Content-Type says nothing. `schema1` for Docker's old format. */
export function sniffManifestType(bytes: Buffer): string | undefined {
  let document: unknown
  try {
    document = JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
  if (typeof document !== 'object' || document === null) return undefined
  const { mediaType: own, schemaVersion, manifests, layers, config } = document as Record<string, unknown>
  if (schemaVersion === 1) return 'schema1'
  if (typeof own === 'string' && isManifestType(own)) return own
  // In OCI documents the field is optional: what they contain tells them apart.
  if (own !== undefined) return undefined
  if (Array.isArray(manifests)) return mediaType.ociIndex
  return Array.isArray(layers) && config !== undefined ? mediaType.ociManifest : undefined
}
