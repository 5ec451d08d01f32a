import { setTimeout as wait } from 'node:timers/promises'
import { Code, CriError, messageOf } from '../../errors/cri-error.ts'
import type { AuthConfig } from '../../generated/cri.ts'
import type { Init } from '../../generated/int64.ts'
import type { PullView } from '../../image-service/pull/progress.ts'
import { authOf } from '../auth-file.ts'
import { type Command, ExitCode, type Output } from '../command.ts'
import { imageArgument } from '../image-argument.ts'
import { bars, changes, ownPull, summary } from '../pull-display.ts'
import { serviceFlags, settingsFor } from '../service-flags.ts'

/** As a shell says it of a program that SIGINT ended. */
const interruptedCode = 130
const lookMs = 200

/** The part of a terminal that bars need. */
export interface Terminal {
  readonly isTTY?: boolean
  readonly columns?: number
  readonly rows?: number
}

export interface PullCommandDeps {
  readonly terminal: Terminal
  /** Calls back at Ctrl-C; returns what stops that. */
  readonly onInterrupt: (callback: () => void) => () => void
}

const processDeps: PullCommandDeps = {
  terminal: process.stdout,
  onInterrupt: (callback) => {
    process.once('SIGINT', callback)
    return () => process.off('SIGINT', callback)
  },
}

/** The command that pulls through the running service, as the kubelet does. */
export function pullCommand(deps: PullCommandDeps = processDeps): Command {
  return {
    name: 'pull',
    summary: 'pull an image through the running service and show who serves it',
    positionals: 'IMAGE',
    maxPositionals: 1,
    flags: {
      config: serviceFlags.config,
      listen: { ...serviceFlags.listen, help: 'the service\'s CRI socket (default: from the configuration)' },
      'metrics-address': { ...serviceFlags['metrics-address'], help: 'its metrics address; "" shows no progress (default: from the configuration)' },
      'auth-file': { type: 'string', value: 'FILE', help: 'a Docker config.json with the credential for the image\'s registry, as a pod\'s pull secret' },
    },
    details: `The service does the pull, exactly as for a pod: with its mirrors, credentials and limits. Its settings are read to find its socket, and its
metrics address, where progress comes from. On a terminal there is a bar for each layer, else a line for each event.
Ctrl-C ends the pull, unless a pod waits for the same image; what was downloaded stays for the next try.
Exit codes: 0 pulled, 1 failed, 2 wrong command line, 130 interrupted.`,
    async run(args, output) {
      const ref = await imageArgument('pull', args)
      const { flags } = args
      const { settings } = settingsFor({ ...args, flags: { config: flags['config'], listen: flags['listen'], 'metrics-address': flags['metrics-address'] } })
      const auth = flags['auth-file'] === undefined ? undefined : await authOf(flags['auth-file'], ref)
      return run(deps, output, { listen: settings.shim.listen, metrics: settings.shim.metricsAddress, image: ref.toString(), auth })
    },
  }
}

interface What {
  readonly listen: string
  readonly metrics: string
  readonly image: string
  readonly auth: Init<AuthConfig> | undefined
}

async function run(deps: PullCommandDeps, output: Output, { listen, metrics, image, auth }: What): Promise<number> {
  const { pullImage, fetchPulls } = await import('../pull-client.ts')
  const interrupted = new AbortController()
  const forget = deps.onInterrupt(() => interrupted.abort(new CriError(Code.CANCELLED, 'interrupted')))
  const display = new Display(output, deps.terminal)
  const startedMs = Date.now()
  const ended = new AbortController()
  const look = async (): Promise<PullView | undefined> => ownPull(await fetchPulls(metrics), image, startedMs)
  const following = follow(look, ended.signal, display, (why) => output.stderr(`cri-shim: no progress can be shown: ${why}\n`))
  try {
    const id = await pullImage(listen, image, auth, interrupted.signal)
    ended.abort()
    const last = await following
    display.end()
    for (const line of last === undefined ? [] : summary(last)) output.stdout(`${line}\n`)
    output.stdout(`${image}: ${id}\n`)
    return ExitCode.ok
  } catch (error) {
    ended.abort()
    await following
    display.end()
    if (!interrupted.signal.aborted) throw error
    output.stderr('cri-shim: interrupted; what was downloaded stays for the next try\n')
    return interruptedCode
  } finally {
    forget()
  }
}

/** Looks at the listing until the call has ended, and once more then. Gives what it saw last. */
async function follow(look: () => Promise<PullView | undefined>, ended: AbortSignal, display: Display, cannot: (why: string) => void): Promise<PullView | undefined> {
  let last: PullView | undefined
  for (;;) {
    const final = ended.aborted
    try {
      const view = await look()
      if (view !== undefined) display.show(view)
      last = view ?? last
    } catch (error) {
      cannot(messageOf(error))
      return last
    }
    if (final) return last
    await wait(lookMs, undefined, { signal: ended }).catch(() => undefined)
  }
}

class Display {
  readonly #output: Output
  readonly #terminal: Terminal
  #drawn = 0
  #last: PullView | undefined

  constructor(output: Output, terminal: Terminal) {
    this.#output = output
    this.#terminal = terminal
  }

  show(view: PullView): void {
    if (this.#terminal.isTTY !== true) {
      for (const line of changes(this.#last, view)) this.#output.stdout(`${line}\n`)
      this.#last = view
      return
    }
    // A terminal that was told no size says 0.
    const { columns = 0, rows = 0 } = this.#terminal
    const lines = bars(view, columns > 0 ? columns : 80, rows > 0 ? rows : 24)
    // Up to the first line of what was drawn before, and everything from there on anew.
    this.#output.stdout(`${this.#drawn > 0 ? `\u001b[${this.#drawn}A` : ''}\r\u001b[0J${lines.join('\n')}\n`)
    this.#drawn = lines.length
  }

  /** What follows is written below. */
  end(): void {
    this.#drawn = 0
  }
}
