import type { CriError } from '../errors/cri-error.ts'
import type { Tracer } from '../observability/tracing.ts'
import type { Audit } from './audit.ts'
import type { HandlerTable, Method } from './handlers.ts'

/**
 * Says whether an RPC may run now: undefined lets it through, an error (UNAVAILABLE while starting or while containerd is away)
 * is the answer. Version and Status are never asked for: they are how a client finds out what is wrong.
 */
export type Gate = (method: Method) => CriError | undefined

/** The whole service behind the endpoint, as the composition root wires it. */
export interface Service {
  readonly handlers: HandlerTable
  readonly gate: Gate
  /** What is to be had as JSON on the metrics address, by path. */
  readonly listings?: Readonly<Record<string, () => unknown>>
  /** What is wrong with the service or what it stands on, undefined when nothing is: whether it is alive, which is not whether it is ready. Never rejects. */
  problem?(): Promise<string | undefined>
  /** Undefined when tracing is switched off. */
  readonly tracer?: Tracer | undefined
  /** Undefined when there is no audit log. */
  readonly audit?: Audit | undefined
  /**
   * Resolves when the stores are loaded and the gate is open. Waits for a containerd that is away as long as it takes; rejects
   * only for what waiting does not cure. The endpoint listens before it is called.
   */
  start(): Promise<void>
  /** Ends everything that `start` and the handlers left running; pods go on. Called once no RPC runs any more. */
  close(): Promise<void>
}
