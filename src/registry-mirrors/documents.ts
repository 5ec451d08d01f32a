import type { IncomingMessage } from 'node:http'
import { Code, CriError } from '../errors/cri-error.ts'
import { discardBody, readBody } from './body-reader.ts'
import { decodeBody, encodingOf } from './content-encoding.ts'
import { digestOf, digestProblem, matchesDigest, shortDigest } from './digest.ts'
import { HostFailure, safeText } from './failures.ts'
import type { Asking, HostRequests, Question } from './host-requests.ts'
import type { ImageRef } from './image-ref.ts'
import { acceptManifests, bareType, isManifestType, isSchema1Type, sniffManifestType } from './media-types.ts'
import type { RegistryHost } from './registry-host.ts'

/** What a registry holds, by its digest. */
export interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly sizeBytes: number
}

/** containerd rejects manifests above 4 MiB; some registries allow 8. */
export const maxManifestBytes = 8 * 1024 * 1024

/** Asks one host for what fits into memory: what a tag means, manifests, configurations. Rejects as HostRequests do. */
export class DocumentRequests {
  readonly #requests: HostRequests
  readonly #stallTimeoutMs: number

  constructor(requests: HostRequests, stallTimeoutMs: number) {
    this.#requests = requests
    this.#stallTimeoutMs = stallTimeoutMs
  }

  /** What a reference means to the host. A tag is believed, so it is not asked for over a redirect to plain HTTP. */
  async resolve(host: RegistryHost, asking: Asking): Promise<Descriptor> {
    const { ref } = asking
    const question: Question = { method: 'HEAD', object: `manifests/${ref.digest ?? ref.tag ?? 'latest'}`, headers: { accept: acceptManifests }, believed: ref.digest === undefined }
    const descriptor = (await this.#byHead(host, asking, question)) ?? (await this.#byGet(host, asking, { ...question, method: 'GET' }))
    if (ref.digest !== undefined && descriptor.digest !== ref.digest) throw new HostFailure('content', `sent ${shortDigest(descriptor.digest)} for ${shortDigest(ref.digest)}`)
    return descriptor
  }

  /** The bytes of a document, verified by digest. */
  async fetch(kind: 'manifests' | 'blobs', host: RegistryHost, asking: Asking, descriptor: Descriptor): Promise<Buffer> {
    const accept = kind === 'manifests' && descriptor.mediaType !== '' ? `${descriptor.mediaType}, */*` : '*/*'
    const response = await this.#requests.ask(host, asking, { method: 'GET', object: `${kind}/${descriptor.digest}`, headers: { accept } })
    const sent = await readBody(response, maxManifestBytes, this.#stallTimeoutMs)
    // Storage behind registries says of blobs that they are encoded which only look like it.
    const bytes = matchesDigest(sent, descriptor.digest) ? sent : decodeBody(sent, response.headers, maxManifestBytes)
    // 0: the size is not known.
    if (descriptor.sizeBytes > 0 && bytes.length !== descriptor.sizeBytes) {
      // An index that says a wrong size cannot be mended by asking another host.
      const told = matchesDigest(bytes, descriptor.digest) ? `has ${bytes.length} bytes under this digest, where ${descriptor.sizeBytes} were announced` : `sent ${bytes.length} bytes instead of ${descriptor.sizeBytes}`
      throw new HostFailure('content', told)
    }
    if (!matchesDigest(bytes, descriptor.digest)) throw new HostFailure('content', 'sent bytes that do not match the digest')
    return bytes
  }

  /** Undefined when the answer's head does not tell everything. */
  async #byHead(host: RegistryHost, asking: Asking, question: Question): Promise<Descriptor | undefined> {
    const { response, refusal } = await this.#requests.answer(host, asking, question)
    await discardBody(response)
    const status = response.statusCode ?? 0
    // A HEAD's refusal has no body to say why, and some registries refuse HEAD itself, or say 404 to it.
    if (status !== 200) {
      if ([400, 403, 404, 405, 406, 501].includes(status)) return undefined
      throw refusal('')
    }
    const type = bareType(response.headers['content-type'])
    if (isSchema1Type(type)) throw schema1(asking.ref)
    const digest = headerOf(response, 'docker-content-digest') ?? asking.ref.digest
    const length = response.headers['content-length']
    // A length of 0 is what servers say that know nothing of it; of an encoded answer it is another one.
    const sizeIsKnown = length !== undefined && /^[1-9]\d{0,14}$/.test(length) && encodingOf(response.headers) === undefined
    if (digest === undefined || digestProblem(digest) !== undefined || !isManifestType(type) || !sizeIsKnown) return undefined
    const sizeBytes = Number(length)
    if (sizeBytes > maxManifestBytes) throw new HostFailure('content', `its manifest has ${sizeBytes} bytes, the limit is ${maxManifestBytes}`)
    return { mediaType: type, digest, sizeBytes }
  }

  async #byGet(host: RegistryHost, asking: Asking, question: Question): Promise<Descriptor> {
    const response = await this.#requests.ask(host, asking, question)
    const type = bareType(response.headers['content-type'])
    const said = headerOf(response, 'docker-content-digest')
    const bytes = decodeBody(await readBody(response, maxManifestBytes, this.#stallTimeoutMs), response.headers, maxManifestBytes)
    const sniffed = sniffManifestType(bytes)
    if (isSchema1Type(type) || sniffed === 'schema1') throw schema1(asking.ref)
    const known = isManifestType(type) ? type : sniffed
    if (known === undefined) throw new HostFailure('content', `answered with ${type === '' ? 'something' : safeText(type, 60)} that is no image manifest`)
    const algorithm = asking.ref.digest ?? (said !== undefined && digestProblem(said) === undefined ? said : undefined)
    const digest = digestOf(bytes, algorithm)
    if (algorithm !== undefined && algorithm !== digest) throw new HostFailure('content', 'sent a manifest that does not match its digest')
    return { mediaType: known, digest, sizeBytes: bytes.length }
  }
}

function schema1(ref: ImageRef): CriError {
  const text = `${ref.toString()} is in Docker's old image format (manifest schema 1), which is not supported: rebuild or push it again with a current tool`
  return new CriError(Code.FAILED_PRECONDITION, text, { reason: 'SCHEMA1' })
}

function headerOf(response: IncomingMessage, name: string): string | undefined {
  const value = response.headers[name]
  return typeof value === 'string' ? value.trim() : undefined
}
