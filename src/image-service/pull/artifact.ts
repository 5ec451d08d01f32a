import { posix } from 'node:path'
import { invalidArgument } from '../../errors/cri-error.ts'
import type { Descriptor } from '../../registry-mirrors/registry-client.ts'
import type { Artifact, ArtifactFile } from '../../state/records.ts'

/** Configurations of container images; everything else is that of an artifact. Old tools pushed images with no type or with octet-stream. */
const imageConfigTypes: ReadonlySet<string> = new Set([
  '', 'application/vnd.oci.image.config.v1+json', 'application/vnd.docker.container.image.v1+json', 'application/octet-stream',
])

/** The file's name as `oras push` and others write it, then as the CNCF model format does. */
const nameAnnotations = ['org.opencontainers.image.title', 'org.cncf.model.filepath']
const maxNameBytes = 255
const maxPathBytes = 3000

/** `{}`, the configuration of artifacts that have none (OCI image-spec, "Guidance for an empty descriptor"). */
export const emptyConfig = { digest: 'sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a', bytes: Buffer.from('{}') } as const

export interface ArtifactLayer {
  readonly descriptor: Descriptor
  readonly annotations: Readonly<Record<string, unknown>>
}

/** Whether a manifest is one of an artifact: something else than a container image that a registry keeps (OCI image-spec, "Guidelines for Artifact Usage"). */
export function isArtifact(configType: string, artifactType: string, hasForeignLayers: boolean): boolean {
  return !imageConfigTypes.has(configType) || (artifactType !== '' && hasForeignLayers)
}

/** The files of an artifact: its layers that have a name. Names are as hostile as what they name: those that cannot be files of one directory are its `problem`. */
export function artifactOf(type: string, layers: readonly ArtifactLayer[]): Artifact {
  const files: ArtifactFile[] = []
  const taken = new Map<string, 'file' | 'directory'>()
  try {
    for (const { descriptor, annotations } of layers) {
      const name = nameAnnotations.map((key) => annotations[key]).find((value) => value !== undefined)
      if (name === undefined) continue
      const path = filePath(name)
      if (taken.has(path)) throw invalidArgument(`it has two files at ${JSON.stringify(path)}`)
      taken.set(path, 'file')
      for (let dir = posix.dirname(path); dir !== '.'; dir = posix.dirname(dir)) {
        if (taken.get(dir) === 'file') throw invalidArgument(`${JSON.stringify(dir)} is both a file and a directory in it`)
        taken.set(dir, 'directory')
      }
      files.push({ path, digest: descriptor.digest, sizeBytes: descriptor.sizeBytes })
    }
    if (files.length === 0) throw invalidArgument(`none of its ${layers.length} layers has a name (annotation ${nameAnnotations[0]})`)
    return { type, files, problem: undefined }
  } catch (error) {
    return { type, files: [], problem: error instanceof Error ? error.message : String(error) }
  }
}

function filePath(name: unknown): string {
  if (typeof name !== 'string') throw invalidArgument('it has a file whose name is no string')
  const shown = JSON.stringify(name.slice(0, 200))
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (name.startsWith('/') || parts.includes('..')) throw invalidArgument(`its file ${shown} would be outside of it`)
  if (parts.length === 0 || name.endsWith('/') || name.includes('\0')) throw invalidArgument(`${shown} is no name of a file`)
  if (Buffer.byteLength(name) > maxPathBytes || parts.some((part) => Buffer.byteLength(part) > maxNameBytes)) throw invalidArgument(`the name of its file ${shown} is too long`)
  return parts.join('/')
}

/** The name of the committed snapshot that has an artifact's files. */
export function artifactSnapshot(manifestDigest: string): string {
  return `cri-shim-artifact-${manifestDigest}`
}
