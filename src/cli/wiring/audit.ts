import { readFile } from 'node:fs/promises'
import type { Settings } from '../../config/settings.ts'
import type { Linux } from '../../linux/linux.ts'
import { AuditLog, type AuditLine } from '../../observability/audit-log.ts'
import { CriError, codeName, messageOf } from '../../errors/cri-error.ts'
import type { Logger } from '../../observability/logger.ts'
import type { Metrics } from '../../observability/metrics.ts'
import type { Audit, AuditNames } from '../../server/audit.ts'
import { commandOf } from '../../server/audit.ts'
import type { Peer } from '../../server/peers.ts'
import type { Container, Sandbox } from '../../state/records.ts'
import type { Store } from '../../state/store.ts'
import type { StreamingBackend } from '../../streaming/types.ts'

export interface AuditWiringOptions {
  readonly settings: Settings['shim']['audit']
  readonly linux: Pick<Linux, 'peerCredentials'>
  readonly sandboxes: Store<Sandbox>
  readonly containers: Store<Container>
  readonly log: Logger
  readonly metrics: Metrics
}

/** The audit log with what is known of pods and containers. */
export class AuditWiring implements Audit {
  readonly commands: boolean
  readonly #options: AuditWiringOptions
  readonly #file: AuditLog
  readonly #onHangUp = (): void => this.#file.reopen()

  private constructor(options: AuditWiringOptions) {
    this.#options = options
    this.commands = options.settings.commands
    this.#file = new AuditLog({ target: options.settings.log, log: options.log, metrics: options.metrics })
  }

  /** Undefined when there is no audit log. */
  static async start(options: AuditWiringOptions): Promise<AuditWiring | undefined> {
    if (options.settings.log === '') return undefined
    const audit = new AuditWiring(options)
    await audit.#file.start()
    process.on('SIGHUP', audit.#onHangUp)
    return audit
  }

  write(line: AuditLine): void {
    this.#file.write(line)
  }

  describeContainer(id: string): AuditNames {
    const container = id === '' ? undefined : known(this.#options.containers, id)
    if (container === undefined) return { containerId: id }
    const { config, sandboxId } = container.metadata
    return { ...this.describePod(sandboxId), container: config.metadata?.name ?? '', containerId: container.id }
  }

  describePod(id: string): AuditNames {
    const sandbox = id === '' ? undefined : known(this.#options.sandboxes, id)
    const metadata = sandbox?.metadata.config.metadata
    return { ...(metadata ? { namespace: metadata.namespace, pod: metadata.name, podUid: metadata.uid } : {}), podSandboxId: sandbox?.id ?? id }
  }

  readonly lookUp = async (fd: number): Promise<Peer> => {
    const credentials = await this.#options.linux.peerCredentials(fd)
    const name = credentials.pid <= 0 ? '' : await readFile(`/proc/${credentials.pid}/comm`, 'utf8').catch(() => '')
    return { ...credentials, process: name.trim() }
  }

  /** A line for each stream at its end, and for each connection of a port-forward: `requestId` is that of the call which asked for it. */
  streams(backend: StreamingBackend): StreamingBackend {
    const recorded = async <T>(action: string, requestId: string | undefined, subject: object, work: Promise<T>, outcome: (value: T) => object): Promise<T> => {
      const started = performance.now()
      const done = (result: object): void => this.write({ action, requestId: requestId ?? null, ...subject, ...result, durationMs: Math.round(performance.now() - started) })
      try {
        const value = await work
        done(outcome(value))
        return value
      } catch (error) {
        done({ result: error instanceof CriError ? codeName(error.code) : 'INTERNAL', error: messageOf(error) })
        throw error
      }
    }
    const ended = (result: Awaited<ReturnType<StreamingBackend['exec']>>): object => ('exitCode' in result ? { result: 'OK', exitCode: result.exitCode } : { result: 'INTERNAL', error: result.error })
    return {
      ...backend,
      exec: (session, io) => recorded('ExecStream', session.requestId, { ...this.describeContainer(session.containerId), ...commandOf(this, session.command) }, backend.exec(session, io), ended),
      attach: (session, io) => recorded('AttachStream', session.requestId, this.describeContainer(session.containerId), backend.attach(session, io), ended),
      connect: (session, port, signal) => recorded('PortForwardConnection', session.requestId, { ...this.describePod(session.podSandboxId), port }, backend.connect(session, port, signal), () => ({ result: 'OK' })),
    }
  }

  async close(): Promise<void> {
    process.off('SIGHUP', this.#onHangUp)
    await this.#file.close()
  }
}

function known<T extends { readonly id: string }>(store: Store<T>, id: string): T | undefined {
  try {
    return store.lookup(id)
  } catch {
    // Shortened so far that it is several.
    return undefined
  }
}
