import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { hostname } from 'node:os'
import { createSecureContext } from 'node:tls'
import type { StreamingSettings } from '../config/settings.ts'
import { messageOf, unavailable } from '../errors/cri-error.ts'
import type { Logger } from '../observability/logger.ts'
import type { KeyPair } from './protocol.ts'
import { selfSigned } from './self-signed.ts'

const dayMs = 86_400_000
/** A certificate of our own; the next one is made when a third is left. */
const validMs = 365 * dayMs
const checkEveryMs = 30_000

export interface KeyPairsOptions {
  readonly settings: StreamingSettings
  readonly log: Logger
  /** There is a new one for connections from now on. */
  readonly onChange: (pair: KeyPair) => void
  readonly validMs?: number
  readonly checkEveryMs?: number
}

/** The key pair of the streaming server: from files, read again when they change, or self-signed and renewed in time. */
export class KeyPairs {
  readonly #options: KeyPairsOptions
  readonly #validMs: number
  #current: { readonly pair: KeyPair; readonly madeAtMs: number } | undefined
  #timer: NodeJS.Timeout | undefined
  #busy = false
  #complained = ''

  constructor(options: KeyPairsOptions) {
    this.#options = options
    this.#validMs = options.validMs ?? validMs
  }

  /** The pair to begin with; the first call also starts the watch. UNAVAILABLE when the files cannot be used. */
  async current(): Promise<KeyPair> {
    this.#current ??= { pair: await this.#obtain(), madeAtMs: Date.now() }
    this.#timer ??= setInterval(() => void this.#check(), this.#options.checkEveryMs ?? checkEveryMs).unref()
    return this.#current.pair
  }

  close(): void {
    clearInterval(this.#timer)
  }

  get #fromFiles(): boolean {
    return this.#options.settings.certFile !== ''
  }

  /** Never rejects: the pair in use stays. */
  async #check(): Promise<void> {
    const { current, log, onChange } = { current: this.#current, ...this.#options }
    if (current === undefined || this.#busy) return
    if (!this.#fromFiles && Date.now() - current.madeAtMs < this.#validMs * 2 / 3) return
    this.#busy = true
    try {
      const pair = await this.#obtain()
      this.#complained = ''
      if (pair.cert === current.pair.cert && pair.key === current.pair.key) return
      this.#current = { pair, madeAtMs: Date.now() }
      onChange(pair)
      log.info({ validUntil: new X509Certificate(pair.cert).validTo }, 'the streaming server has a new certificate')
    } catch (error) {
      const message = messageOf(error)
      if (message !== this.#complained) log.warn({ err: error }, `${message}; the one in use stays`)
      this.#complained = message
    } finally {
      this.#busy = false
    }
  }

  async #obtain(): Promise<KeyPair> {
    const { address, certFile, keyFile } = this.#options.settings
    if (!this.#fromFiles) {
      const host = hostname()
      const names = new Set(['localhost', host, '127.0.0.1', '::1'])
      if (address !== '' && (isIP(address) !== 0 || /^[\w.-]+$/.test(address))) names.add(address)
      return selfSigned(`cri-shim streaming on ${host}`.slice(0, 64), [...names], this.#validMs)
    }
    try {
      const pair = { cert: await readFile(certFile, 'utf8'), key: await readFile(keyFile, 'utf8') }
      // Throws when they are no PEM or do not belong together: while they are being replaced, for instance.
      createSecureContext(pair)
      return pair
    } catch (error) {
      throw unavailable(`the streaming server's key pair cannot be used: ${certFile} and ${keyFile}: ${messageOf(error)}`, { cause: error })
    }
  }
}
