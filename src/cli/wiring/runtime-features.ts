import { execFile } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { delimiter, isAbsolute, join } from 'node:path'
import { promisify } from 'node:util'
import type { RuntimeSettings, Settings } from '../../config/settings.ts'
import { isRuncType } from '../../containerd/runtime-options.ts'
import { errnoOf, messageOf } from '../../errors/cri-error.ts'
import type { Any } from '../../generated/containerd.ts'
import type { Init } from '../../generated/int64.ts'
import type { Logger } from '../../observability/logger.ts'
import { noFeatures, parseRuntimeFeatures, type RuntimeFeatures } from '../../oci-spec/runtime-features.ts'
import { runtimeSettings, sandboxRuntime } from './runtimes.ts'

const run = promisify(execFile)
const askTimeoutMs = 10_000
const maxAnswerBytes = 1024 * 1024
/** mount_setattr(2), by which runtimes make mounts read-only recursively and map their ids, is there from here on. */
const mountSetattrKernel = [5, 12] as const

export interface RuntimeFeatureOptions {
  readonly settings: Settings
  readonly log: Logger
  /** Major, minor. */
  readonly kernel: readonly [number, number]
  /** PATH of containerd, by which its shims find the runtime. */
  readonly searchPath: () => string
  /** What containerd's shim says of a runtime that is not of runc's kind; undefined when it says nothing. */
  readonly askShim: (runtimePath: string, options: Init<Any> | undefined) => Promise<string | undefined>
}

interface Answer {
  /** Of the binary that was asked: another one under the same name is asked anew. */
  readonly identity: string
  readonly features: Promise<RuntimeFeatures>
}

/** What the runtimes of the handlers can do. They are asked, once for each binary: a runtime that was upgraded is asked again. */
export class RuntimeFeatureProbe {
  readonly #options: RuntimeFeatureOptions
  readonly #answers = new Map<string, Answer>()

  constructor(options: RuntimeFeatureOptions) {
    this.#options = options
  }

  /** Of one that cannot be asked, nothing is promised. Throws INVALID_ARGUMENT for a handler that is not configured. */
  async of(handler: string): Promise<RuntimeFeatures> {
    const runtime = runtimeSettings(this.#options.settings, handler)
    const found = isRuncType(runtime.runtimeType) ? await this.#ofBinary(runtime) : await this.#ofShim(handler, runtime)
    const [major, minor] = this.#options.kernel
    const isOld = major < mountSetattrKernel[0] || (major === mountSetattrKernel[0] && minor < mountSetattrKernel[1])
    return isOld ? { ...found, recursiveReadOnlyMounts: false, idmapMounts: false } : found
  }

  /** The program that the handler's shim runs, for messages. */
  describe(handler: string): string {
    const runtime = runtimeSettings(this.#options.settings, handler)
    return isRuncType(runtime.runtimeType) ? binaryName(runtime) : runtime.runtimeType
  }

  /** Asks again what was asked through containerd, which is another one now. */
  forget(): void {
    for (const [key, { identity }] of this.#answers) if (identity === '') this.#answers.delete(key)
  }

  async #ofBinary(runtime: RuntimeSettings): Promise<RuntimeFeatures> {
    const name = binaryName(runtime)
    const binary = await find(name, this.#options.searchPath())
    if (binary === undefined) {
      this.#options.log.debug({ runtime: name }, 'this runtime is not on the PATH of containerd')
      return noFeatures
    }
    return this.#cached(binary.path, binary.identity, async () => {
      const { stdout } = await run(binary.path, ['features'], { timeout: askTimeoutMs, killSignal: 'SIGKILL', maxBuffer: maxAnswerBytes, env: { PATH: this.#options.searchPath() }, cwd: '/' })
      return stdout
    })
  }

  async #ofShim(handler: string, runtime: RuntimeSettings): Promise<RuntimeFeatures> {
    const { path, type, options } = sandboxRuntime(this.#options.settings, handler)
    return this.#cached(`shim ${handler === '' ? this.#options.settings.defaultRuntimeName : handler}`, '', () => this.#options.askShim(path === '' ? type : path, options), runtime.runtimeType)
  }

  async #cached(key: string, identity: string, ask: () => Promise<string | undefined>, name = key): Promise<RuntimeFeatures> {
    const known = this.#answers.get(key)
    if (known?.identity === identity) return known.features
    const answer: Answer = {
      identity,
      features: this.#ask(name, ask, () => {
        if (this.#answers.get(key) === answer) this.#answers.delete(key)
      }),
    }
    this.#answers.set(key, answer)
    return answer.features
  }

  async #ask(name: string, ask: () => Promise<string | undefined>, forget: () => void): Promise<RuntimeFeatures> {
    const { log } = this.#options
    try {
      const text = await ask()
      if (text !== undefined) {
        const features = parseRuntimeFeatures(text)
        log.info({ runtime: name, ...features }, 'a runtime was asked what it can do')
        return features
      }
      log.info({ runtime: name }, 'a runtime does not say what it can do: recursive read-only mounts and user namespaces are refused to its pods')
    } catch (error) {
      // A program that was killed or could not be started has not answered; one that failed has.
      if (errnoOf(error) !== undefined || (error instanceof Error && 'killed' in error && error.killed === true)) forget()
      log.info({ runtime: name, err: messageOf(error) }, 'a runtime does not say what it can do: recursive read-only mounts and user namespaces are refused to its pods')
    }
    return noFeatures
  }
}

function binaryName(runtime: RuntimeSettings): string {
  return runtime.options.kind === 'runc' && runtime.options.binaryName !== '' ? runtime.options.binaryName : 'runc'
}

/** A program as execvp(3) finds it, with what distinguishes it from another one in its place. */
async function find(name: string, searchPath: string): Promise<{ readonly path: string; readonly identity: string } | undefined> {
  const candidates = name.includes('/') ? [name] : searchPath.split(delimiter).map((dir) => join(dir, name))
  for (const path of candidates) {
    if (!isAbsolute(path)) continue
    try {
      const { dev, ino, size, mtimeNs, ctimeNs, mode } = await stat(path, { bigint: true })
      if ((mode & 0o111n) !== 0n && (mode & 0o170000n) === 0o100000n) return { path, identity: [dev, ino, size, mtimeNs, ctimeNs].join(' ') }
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
  }
  return undefined
}
