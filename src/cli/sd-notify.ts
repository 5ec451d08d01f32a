import { pause } from '../concurrency/deadline.ts'
import { CriError } from '../errors/cri-error.ts'
import { sendUnixDatagram } from '../linux/sd-notify.ts'
import type { Logger } from '../observability/logger.ts'

/** What the service manager set for this process (sd_notify(3), sd_watchdog_enabled(3)). */
export interface NotifyEnvironment {
  readonly socket: string | undefined
  /** Between two signs of life at the most; undefined: none are expected. */
  readonly watchdogMs: number | undefined
}

/** Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID and removes them: a CNI plugin that we start must not speak in our name. */
export function takeNotifyEnvironment(env: NodeJS.ProcessEnv, pid: number = process.pid): NotifyEnvironment {
  const socket = env['NOTIFY_SOCKET']
  const usec = Number(env['WATCHDOG_USEC'])
  const owner = env['WATCHDOG_PID']
  delete env['NOTIFY_SOCKET']
  delete env['WATCHDOG_USEC']
  delete env['WATCHDOG_PID']
  const watched = Number.isSafeInteger(usec) && usec > 0 && (owner === undefined || Number(owner) === pid)
  return { socket: socket === '' ? undefined : socket, watchdogMs: watched ? usec / 1000 : undefined }
}

/** How often and how long after each other a message is repeated while the service manager's queue is full. */
const retries = 50
const retryMs = 100

/** Tells systemd how the service does. Without a service manager every call is a no-op; a failure is logged and never stops the service. */
export class ServiceNotifier {
  readonly #environment: NotifyEnvironment
  readonly #log: Logger
  readonly #send: (socket: string, message: string) => void
  #watchdog: NodeJS.Timeout | undefined

  constructor(environment: NotifyEnvironment, log: Logger, send: (socket: string, message: string) => void = sendUnixDatagram) {
    this.#environment = environment
    this.#log = log
    this.#send = send
  }

  /** The service answers; `status` is what `systemctl status` shows. Begins the watchdog's signs of life. */
  async ready(status: string): Promise<void> {
    await this.#notify(`READY=1\n${statusLine(status)}`)
    if (this.#environment.watchdogMs === undefined || this.#watchdog !== undefined) return
    // The event loop sends it: a loop that hangs is what the watchdog is for.
    this.#watchdog = setInterval(() => void this.#notify('WATCHDOG=1', 0), this.#environment.watchdogMs / 2)
    this.#watchdog.unref()
  }

  async status(status: string): Promise<void> {
    await this.#notify(statusLine(status))
  }

  /** A reload was asked for and begins; `ready` ends it. */
  async reloading(): Promise<void> {
    await this.#notify(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`)
  }

  async stopping(status: string): Promise<void> {
    await this.#notify(`STOPPING=1\n${statusLine(status)}`)
  }

  /** Ends the signs of life. */
  close(): void {
    clearInterval(this.#watchdog)
    this.#watchdog = undefined
  }

  async #notify(message: string, attempts = retries): Promise<void> {
    const { socket } = this.#environment
    if (socket === undefined) return
    for (let attempt = 0; ; attempt++) {
      try {
        this.#send(socket, message)
        return
      } catch (error) {
        const full = error instanceof CriError && error.reason === 'EAGAIN'
        if (!full || attempt >= attempts) {
          this.#log.warn({ err: error, message }, 'the service manager could not be told')
          return
        }
      }
      await pause(retryMs)
    }
  }
}

/** One message has one line per variable. */
function statusLine(status: string): string {
  return `STATUS=${status.replaceAll(/\s+/g, ' ').trim()}`
}
