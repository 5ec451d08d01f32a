import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import net, { type AddressInfo } from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, afterEach, before } from 'node:test'
import { type Code, CriError } from '../errors/cri-error.ts'
import { backgroundCtx, type Ctx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { type CertificateFiles, FakeRegistry, makeCertificates, sha256 } from './fake-registry.test-helper.ts'
import { type ImageRef, parseImageRef } from './image-ref.ts'
import { mediaType } from './media-types.ts'
import { type Descriptor, type OpenBlobOptions, RegistryClient, type RegistryClientOptions } from './registry-client.ts'
import { noRegistrySettings } from './settings.ts'

export const manifestBytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociManifest, config: {}, layers: [] }))
export const blobBytes = Buffer.alloc(3 * 1024 * 1024 + 17, 'the bytes of a layer, over and over; ')
export const manifest: Descriptor = { mediaType: mediaType.ociManifest, digest: sha256(manifestBytes), sizeBytes: manifestBytes.length }
export const blob: Descriptor = { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest: sha256(blobBytes), sizeBytes: blobBytes.length }
/** The image that the registries of these tests hold. */
export const ref = parseImageRef('registry.test/team/app:1.0')
/** Words that no log and no error may hold. */
export const secrets = ['hunter2', 'identity-secret', 'registry-secret', 'token-1', 'token-2', 'header-secret', Buffer.from('user:hunter2').toString('base64')]

export interface ReadBlob {
  readonly bytes: Buffer
  readonly hosts: readonly string[]
  readonly pieces: number[]
}

/** Registries and clients of one test file, all gone when each test is over, and its log looked through for secrets. */
export class RegistryTests {
  root = ''
  logged = ''
  readonly cleanups: (() => unknown)[] = []
  readonly ctx: Ctx
  #certificates: CertificateFiles | undefined
  #dirs = 0

  constructor() {
    this.ctx = backgroundCtx(createLogger('trace', { write: (line: string) => { this.logged += line } }), 'test')
    before(async () => {
      this.root = await mkdtemp(path.join(os.tmpdir(), 'registry-client-'))
    })
    after(() => rm(this.root, { recursive: true, force: true }))
    afterEach(async () => {
      for (const cleanup of this.cleanups.splice(0).reverse()) await cleanup()
      for (const secret of secrets) assert.ok(!this.logged.includes(secret), `${secret} is in the log`)
      assert.ok(!this.logged.includes('?ns='), 'URLs are logged without their query')
      this.logged = ''
    })
  }

  get certificates(): CertificateFiles {
    this.#certificates ??= makeCertificates(this.root)
    return this.#certificates
  }

  /** With the image. */
  async registry(options: Parameters<typeof FakeRegistry.start>[0] = {}): Promise<FakeRegistry> {
    const started = await FakeRegistry.start(options)
    this.cleanups.push(() => started.close())
    started.putManifest('team/app', '1.0', manifestBytes, mediaType.ociManifest)
    started.putBlob('team/app', blobBytes)
    return started
  }

  client(options: Partial<RegistryClientOptions> = {}): RegistryClient {
    const made = new RegistryClient({ ...noRegistrySettings, log: this.ctx.log, userAgent: 'cri-shim/test', env: {}, retryDelayMs: 1, ...options })
    this.cleanups.push(() => made.close())
    return made
  }

  /** A config_path with one hosts.toml for registry.test. */
  async certsD(toml: string): Promise<string[]> {
    const dir = path.join(this.root, `certs-${this.#dirs++}`)
    await mkdir(path.join(dir, 'registry.test'), { recursive: true })
    await writeFile(path.join(dir, 'registry.test/hosts.toml'), toml)
    return [dir]
  }

  /** Mirrors in order, the last one as `server`. */
  async through(...registries: readonly { readonly url: string }[]): Promise<string[]> {
    const hosts = registries.slice(0, -1).map((mirror) => `[host."${mirror.url}"]\n`)
    return this.certsD(`server = "${registries.at(-1)?.url}"\n${hosts.join('')}`)
  }

  async readBlob(from: RegistryClient, options: Partial<OpenBlobOptions> = {}, of: ImageRef = ref): Promise<ReadBlob> {
    const opened = await from.openBlob(of, blob, { signal: this.ctx.signal, ...options })
    const pieces: Buffer[] = []
    for await (const piece of opened.stream) pieces.push(Buffer.from(piece))
    return { bytes: Buffer.concat(pieces), hosts: opened.hosts, pieces: pieces.map((piece) => piece.length) }
  }

  /** A host that takes connections and says nothing. */
  async silentServer(): Promise<{ readonly url: string; readonly host: string; readonly connections: () => number }> {
    const held: net.Socket[] = []
    const dead = net.createServer((socket) => held.push(socket.on('error', () => {}))).listen(0, '127.0.0.1')
    await once(dead, 'listening')
    this.cleanups.push(() => {
      for (const socket of held) socket.destroy()
      dead.close()
    })
    const host = `127.0.0.1:${(dead.address() as AddressInfo).port}`
    return { url: `https://${host}`, host, connections: () => held.length }
  }
}

export async function failure(promise: Promise<unknown>, code: Code, pattern: RegExp): Promise<CriError> {
  const error = await promise.then(() => assert.fail('it did not fail'), (reason: unknown) => reason)
  assert.ok(error instanceof CriError, String(error))
  assert.match(error.message, pattern)
  assert.equal(error.code, code, error.message)
  for (const secret of secrets) assert.ok(!error.message.includes(secret), error.message)
  assert.ok(!error.message.includes('?'), error.message)
  return error
}

/** A port of 127.0.0.1 where nothing listens. */
export async function closedPort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
