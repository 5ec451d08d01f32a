import { createHash } from 'node:crypto'
import { createSecureContext, getCACertificates, type SecureContext } from 'node:tls'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import { AuthorityDirectories } from './authority-directories.ts'
import { HostFailure } from './failures.ts'
import { FileCache } from './file-cache.ts'
import { keepNewest } from './newest.ts'
import type { HostTls } from './registry-host.ts'
import { authorityProblem, clientProblem, goodAuthorities } from './tls-file-problems.ts'

/** What TLS connections with the same settings share. */
export interface TlsMaterial {
  /** Equal for equal file contents and settings. */
  readonly id: string
  readonly skipVerify: boolean
  readonly secureContext: SecureContext
}

/** Where Linux distributions keep the bundle of trusted authorities; the first that exists is used, as in Go. */
const systemBundles = [
  '/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt', '/etc/ssl/ca-bundle.pem', '/etc/pki/tls/cacert.pem',
  '/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem', '/etc/ssl/cert.pem',
]
const maxContexts = 64

/** Reads certificates and makes TLS contexts of them, anew when a file changes. */
export class TlsLoader {
  readonly #files = new FileCache((bytes) => bytes)
  readonly #contexts = new Map<string, TlsMaterial>()
  readonly #bundles: readonly string[]
  readonly #directories: AuthorityDirectories

  /** `env`: SSL_CERT_FILE names the machine's bundle of authorities, SSL_CERT_DIR directories of more. */
  constructor(env: Readonly<Record<string, string | undefined>>) {
    const file = env['SSL_CERT_FILE'] ?? ''
    this.#bundles = file === '' ? systemBundles : [file]
    this.#directories = new AuthorityDirectories(env)
  }

  /** Throws a HostFailure of kind `config` naming the file that cannot be used. `withClient` false leaves out the client certificates. */
  async load(tls: HostTls, withClient: boolean): Promise<TlsMaterial> {
    const pairs = withClient ? tls.clientPairs : []
    const ca = await Promise.all(tls.caFiles.map((file) => this.#read(file, 'ca')))
    const cert = await Promise.all(pairs.map((pair) => this.#read(pair.certFile, 'client certificate')))
    const key = await Promise.all(pairs.map((pair) => this.#read(pair.keyFile ?? pair.certFile, 'client key')))
    const bundle = await this.#systemBundle()
    const beside = await this.#directories.beside(bundle)
    const system = [bundle, beside].filter((bytes) => bytes !== undefined)
    const id = idOf([[Buffer.from(String(tls.skipVerify))], system, ca, cert, key])
    const known = this.#contexts.get(id)
    if (known !== undefined) return known
    const problem = problemOf(tls.caFiles, pairs, { ca, cert, key })
    if (problem !== undefined) throw new HostFailure('config', problem)
    const material = { id, skipVerify: tls.skipVerify, secureContext: makeContext({ tls, pairs, ca: [...(system.length === 0 ? getCACertificates('bundled') : system), ...ca.map(goodAuthorities)], cert, key }) }
    keepNewest(this.#contexts, id, material, maxContexts)
    return material
  }

  async #read(file: string, what: string): Promise<Buffer> {
    let bytes: Buffer | undefined
    try {
      bytes = await this.#files.get(file)
    } catch (error) {
      const why = errnoOf(error) === 'EISDIR' ? 'is a directory: name a file in it' : `cannot be read: ${messageOf(error)}`
      throw new HostFailure('config', `${what} ${file} ${why}`, { cause: error })
    }
    if (bytes === undefined) throw new HostFailure('config', `${what} ${file} does not exist`)
    return bytes
  }

  async #systemBundle(): Promise<Buffer | undefined> {
    for (const file of this.#bundles) {
      // An unreadable bundle is like none: the authorities that Node brings along take its place.
      const bytes = await this.#files.get(file).catch(() => undefined)
      if (bytes !== undefined) return bytes
    }
    return undefined
  }
}

function problemOf(caFiles: readonly string[], pairs: HostTls['clientPairs'], { ca, cert, key }: Readonly<Record<'ca' | 'cert' | 'key', readonly Buffer[]>>): string | undefined {
  const none = Buffer.alloc(0)
  return [...caFiles.map((file, index) => authorityProblem(file, ca[index] ?? none)), ...pairs.map((pair, index) => clientProblem(pair, cert[index] ?? none, key[index] ?? none))].find((problem) => problem !== undefined)
}

interface ContextParts {
  readonly tls: HostTls
  readonly pairs: HostTls['clientPairs']
  readonly ca: readonly (Buffer | string)[]
  readonly cert: readonly Buffer[]
  readonly key: readonly Buffer[]
}

function makeContext(parts: ContextParts): SecureContext {
  try {
    // As in Go, whatever is named as an authority is one, an intermediate or the server's own certificate too.
    return createSecureContext({ ca: [...parts.ca], allowPartialTrustChain: true, ...(parts.cert.length === 0 ? {} : { cert: [...parts.cert], key: [...parts.key] }) })
  } catch (error) {
    const files = [...parts.tls.caFiles, ...parts.pairs.flatMap((pair) => [pair.certFile, pair.keyFile ?? ''])].filter((file) => file !== '')
    throw new HostFailure('config', `certificates cannot be used (${files.join(', ')}): ${messageOf(error)}`, { cause: error })
  }
}

/** The file cache hands out the same buffer until the file changes. */
const fileDigests = new WeakMap<Buffer, Buffer>()

function digestOfFile(bytes: Buffer): Buffer {
  const known = fileDigests.get(bytes)
  if (known !== undefined) return known
  const digest = createHash('sha256').update(bytes).digest()
  fileDigests.set(bytes, digest)
  return digest
}

/** Groups and their members are told apart: the same bytes as ca and as key are not the same settings. */
function idOf(groups: readonly (readonly Buffer[])[]): string {
  const hash = createHash('sha256')
  for (const group of groups) {
    hash.update(`#${group.length}`)
    for (const bytes of group) hash.update(digestOfFile(bytes))
  }
  return hash.digest('hex')
}
