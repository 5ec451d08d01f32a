import { spawn } from 'node:child_process'
import path from 'node:path'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import { safeText } from './failures.ts'
import { keepNewest } from './newest.ts'

/** What a helper knows of a server; undefined: nothing. */
export interface HelperCredential {
  /** `<token>`: the secret is an identity token. */
  readonly username: string
  readonly secret: string
}

export interface HelperOptions {
  /** The helper's whole environment; PATH is where it is looked for. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Absolute; empty: PATH. */
  readonly directory: string
  /** How long a helper may take, in milliseconds. Default: 15,000. */
  readonly timeoutMs?: number
}

/** A helper gave no usable answer. The message says which and why, without anything secret. */
export class HelperError extends Error {
  override readonly name = 'HelperError'
}

const maxOutputBytes = 256 * 1024
const maxErrorBytes = 4096
const defaultTimeoutMs = 15_000
const keepMs = 5 * 60_000
/** For what may be mended at any moment, and must not cost a deadline per request. */
const keepFailureMs = 20_000
const maxKept = 256

/** A name that stays in its directory. */
const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]*$/

interface Kept {
  readonly answer: Promise<HelperCredential | undefined>
  /** By the clock that nobody sets; Infinity while it runs. */
  untilMs: number
}

/**
 * Asks credential helpers (docker/docker-credential-helpers: `docker-credential-NAME get`, the server on stdin, JSON on stdout). An answer is
 * kept for five minutes, a failure for twenty seconds; one question for all who ask the same at once.
 */
export class CredentialHelpers {
  readonly #options: HelperOptions
  readonly #kept = new Map<string, Kept>()

  constructor(options: HelperOptions) {
    this.#options = options
  }

  /** The program behind a helper's NAME or absolute path. Throws a HelperError for a name that is none. */
  program(helper: string): string {
    if (path.isAbsolute(helper)) return helper
    if (!namePattern.test(helper)) throw new HelperError(`"${safeText(helper, 40)}" is not the name of a credential helper`)
    const file = `docker-credential-${helper}`
    return this.#options.directory === '' ? file : path.join(this.#options.directory, file)
  }

  /** What the helper knows of `server`. Rejects with a HelperError. */
  async get(helper: string, server: string): Promise<HelperCredential | undefined> {
    const key = `${helper}\n${server}`
    const kept = this.#kept.get(key)
    if (kept !== undefined && kept.untilMs > performance.now()) return kept.answer
    const answer = this.#run(this.program(helper), server)
    const entry: Kept = { answer, untilMs: Number.POSITIVE_INFINITY }
    keepNewest(this.#kept, key, entry, maxKept)
    answer.then((found) => { entry.untilMs = performance.now() + (found === undefined ? keepFailureMs : keepMs) }, () => { entry.untilMs = performance.now() + keepFailureMs })
    return answer
  }

  /** What the helper said was refused: the next question runs it again. */
  forget(helper: string, server: string): void {
    const key = `${helper}\n${server}`
    // One that still runs is newer than what was refused.
    if (this.#kept.get(key)?.untilMs !== Number.POSITIVE_INFINITY) this.#kept.delete(key)
  }

  async #run(program: string, server: string): Promise<HelperCredential | undefined> {
    const { code, stdout, stderr } = await this.#execute(program, server)
    const name = path.basename(program)
    if (code !== 0) {
      // The protocol has no other way to say that there is nothing; Docker compares the same words.
      if (/credentials not found/i.test(stdout)) return undefined
      const said = safeText(stdout.trimStart().startsWith('{') ? stderr : `${stdout} ${stderr}`, 120)
      throw new HelperError(`${name} failed${said === '' ? ` with exit code ${code}` : `: ${said}`}`)
    }
    let document: unknown
    try {
      document = JSON.parse(stdout)
    } catch {
      // Without its cause, which repeats the output.
      throw new HelperError(`${name} did not answer in JSON`)
    }
    const { Username: username, Secret: secret } = (typeof document === 'object' && document !== null ? document : {}) as Readonly<Record<string, unknown>>
    if (typeof username !== 'string' || typeof secret !== 'string') throw new HelperError(`${name} answered without Username and Secret`)
    return username === '' && secret === '' ? undefined : { username, secret }
  }

  async #execute(program: string, server: string): Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }> {
    const timeoutMs = this.#options.timeoutMs ?? defaultTimeoutMs
    const name = path.basename(program)
    return new Promise((resolve, reject) => {
      // A process group of its own, so that what it started ends with it.
      const child = spawn(program, ['get'], { cwd: '/', env: { ...this.#options.env }, stdio: ['pipe', 'pipe', 'pipe'], detached: true })
      const [output, errors]: [Buffer[], Buffer[]] = [[], []]
      let outputBytes = 0
      let errorBytes = 0
      const end = (why: string): void => {
        clearTimeout(timer)
        if (child.pid !== undefined) kill(child.pid)
        // Somebody who left the group may hold the other ends.
        for (const stream of [child.stdin, child.stdout, child.stderr]) stream.destroy()
        reject(new HelperError(`${name} ${why}`))
      }
      const timer = setTimeout(() => end(`did not answer within ${timeoutMs / 1000} s`), timeoutMs)
      child.once('error', (error) => {
        clearTimeout(timer)
        const errno = errnoOf(error)
        const where = path.isAbsolute(program) ? `there is no ${program}` : `${name} is not in PATH`
        reject(new HelperError(errno === 'ENOENT' ? where : errno === 'EACCES' ? `${program} is not executable` : `${name} cannot be started: ${messageOf(error)}`))
      })
      child.stdout.on('data', (chunk: Buffer) => {
        outputBytes += chunk.length
        if (outputBytes > maxOutputBytes) end(`wrote more than ${maxOutputBytes / 1024} KiB`)
        else output.push(chunk)
      })
      child.stderr.on('data', (chunk: Buffer) => {
        errorBytes += chunk.length
        if (errorBytes <= maxErrorBytes) errors.push(chunk)
      })
      child.once('close', (code) => {
        clearTimeout(timer)
        resolve({ code, stdout: Buffer.concat(output).toString('utf8'), stderr: Buffer.concat(errors).toString('utf8') })
      })
      // It may end without reading.
      child.stdin.on('error', () => undefined)
      child.stdin.end(`${server}\n`)
    })
  }
}

function kill(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL')
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error
  }
}
