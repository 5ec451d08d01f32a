import { messageOf, notFound } from '../errors/cri-error.ts'
import type { GoneReason, Transport } from './protocol.ts'
import { watchIdle, type WorkerDeps, type WorkerSession } from './worker-session.ts'

/** A port-forward's client, whatever the transport. */
export interface ForwardClient {
  readonly transport: Transport
  readonly closed: Promise<void>
  readonly lastActivityMs: number
  close(): Promise<void>
  destroy(): void
}

/** One port-forward in the worker. There is no backend call for the whole of it: each connection asks main for its socket. */
export class ForwardSession implements WorkerSession {
  readonly #id: number
  readonly #client: ForwardClient
  readonly #deps: WorkerDeps
  readonly #stopIdle: () => void
  #reason: GoneReason | undefined

  constructor(id: number, client: ForwardClient, deps: WorkerDeps) {
    this.#id = id
    this.#client = client
    this.#deps = deps
    this.#stopIdle = watchIdle(deps.idleTimeoutMs, () => client.lastActivityMs, (message) => this.end('idle', message))
    void client.closed.then(() => {
      this.#stopIdle()
      deps.over(id, client.transport, this.#reason ?? 'success')
    })
  }

  /** There is nowhere to say why: the protocol has error streams for connections only. */
  end(reason: GoneReason, message: string): void {
    if (this.#reason !== undefined) return
    this.#reason = reason
    this.#deps.log('info', { session: this.#id }, `a port-forward ends: ${message}`)
    const timer = setTimeout(() => this.#client.destroy(), this.#deps.limits.finishMs)
    void this.#client.closed.then(() => clearTimeout(timer))
    this.#client.close().catch((error: unknown) => {
      this.#deps.log('debug', { session: this.#id }, `closing a port-forward failed: ${messageOf(error)}`)
      this.#client.destroy()
    })
  }

  open(): void {
    throw notFound('a port-forward has no FIFOs')
  }

  started(): void {}
  closeStdin(): void {}

  async drained(): Promise<'drained'> {
    return 'drained'
  }

  attach(): void {}
  async finish(): Promise<void> {}
}
