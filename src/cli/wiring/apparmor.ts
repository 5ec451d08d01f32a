import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { errnoOf, messageOf } from '../../errors/cri-error.ts'
import { pathExists } from '../../linux/path-exists.ts'
import type { Logger } from '../../observability/logger.ts'
import { DEFAULT_APPARMOR_PROFILE } from '../../oci-spec/apparmor.ts'
import { apparmorProfileText, loadedProfiles } from '../../oci-spec/apparmor-profile.ts'
import type { HostFacts } from '../../oci-spec/input.ts'

const run = promisify(execFile)
const parserTimeoutMs = 30_000

export interface ApparmorOptions {
  readonly log: Pick<Logger, 'info' | 'warn'>
  /** The kernel has AppArmor on, this is no container, and `disable_apparmor` is not set. */
  readonly enabled: boolean
  /** Where it is noted which profile this service has loaded: a directory that a reboot empties, as it empties the kernel. */
  readonly stateDir: string
  /** The profile of containerd, whose shims signal containers. */
  readonly managerProfile: () => Promise<string>
  readonly profilesFile?: string
  readonly configDir?: string
  /** The search path for apparmor_parser. */
  readonly searchPath?: string
}

export type ApparmorFacts = Pick<HostFacts, 'apparmorEnabled' | 'apparmorProfiles' | 'apparmorFault'>

/**
 * The AppArmor profiles in the kernel. Looked at for each pod and container: administrators load profiles while pods run, and tools that clean
 * up (aa-remove-unknown) unload the default one, which is loaded again then.
 */
export class ApparmorProfiles {
  readonly #options: ApparmorOptions
  readonly #profilesFile: string
  readonly #configDir: string
  #current = false
  #loading: Promise<string | undefined> | undefined
  #told = ''

  constructor(options: ApparmorOptions) {
    this.#options = options
    this.#profilesFile = options.profilesFile ?? '/sys/kernel/security/apparmor/profiles'
    this.#configDir = options.configDir ?? '/etc/apparmor.d'
  }

  /** What there is now, after the default profile was loaded if it had to be. */
  async facts(): Promise<ApparmorFacts> {
    if (!this.#options.enabled) return { apparmorEnabled: false, apparmorProfiles: new Set() }
    let profiles = await this.#loaded()
    if (profiles === undefined) return { apparmorEnabled: false, apparmorProfiles: new Set() }
    let fault: string | undefined
    if (!this.#current || !profiles.has(DEFAULT_APPARMOR_PROFILE)) {
      this.#loading ??= this.#load(profiles.has(DEFAULT_APPARMOR_PROFILE)).finally(() => { this.#loading = undefined })
      fault = await this.#loading
      profiles = await this.#loaded() ?? profiles
    }
    return { apparmorEnabled: true, apparmorProfiles: profiles, ...(fault === undefined || profiles.has(DEFAULT_APPARMOR_PROFILE) ? {} : { apparmorFault: fault }) }
  }

  /** Undefined when securityfs is not mounted: nobody can say which profiles there are. */
  async #loaded(): Promise<ReadonlySet<string> | undefined> {
    try {
      return loadedProfiles(await readFile(this.#profilesFile, 'utf8'))
    } catch (error) {
      this.#tell(`AppArmor is on, but its profiles cannot be listed (${messageOf(error)}): containers run without it; mount securityfs on /sys/kernel/security`)
      return undefined
    }
  }

  /** Loads the default profile when it is missing or this service loaded another text of it. The result says what is wrong, undefined for nothing. */
  async #load(present: boolean): Promise<string | undefined> {
    const { log, stateDir } = this.#options
    const text = await this.#text()
    const digest = createHash('sha256').update(text).digest('hex')
    const note = join(stateDir, 'apparmor-profile')
    const before = (await optionalText(note))?.trim()
    // One that somebody else has loaded under this name (containerd's own plugin, an administrator) is theirs.
    if (present && (before === undefined || before === digest)) {
      this.#current = true
      return undefined
    }
    const file = join(stateDir, `${DEFAULT_APPARMOR_PROFILE}.tmp`)
    try {
      await mkdir(stateDir, { recursive: true, mode: 0o711 })
      await writeFile(file, text, { mode: 0o600 })
      // -K: without its cache, which is of files in /etc/apparmor.d; -r: also in place of one that is there.
      await run('apparmor_parser', ['-Kr', file], { timeout: parserTimeoutMs, env: { ...process.env, PATH: this.#options.searchPath ?? `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` } })
      await writeFile(`${note}.tmp`, `${digest}\n`)
      await rename(`${note}.tmp`, note)
    } catch (error) {
      return this.#failed(error, present)
    } finally {
      await rm(file, { force: true })
    }
    this.#current = true
    log.info({ profile: DEFAULT_APPARMOR_PROFILE }, `the AppArmor profile of containers is loaded${present ? ' anew: its text has changed' : ''}`)
    return undefined
  }

  #failed(error: unknown, present: boolean): string | undefined {
    if (errnoOf(error) === 'ENOENT' && messageOf(error).includes('spawn apparmor_parser')) {
      this.#tell(present ? 'the AppArmor profile of containers is of an older version, and apparmor_parser, which loads the new one, is missing: install the package apparmor'
        : `AppArmor is on, and apparmor_parser, which loads the profile ${DEFAULT_APPARMOR_PROFILE}, is missing: containers run without AppArmor confinement unless they name a loaded profile, and pods that ask for the runtime's default are refused; install the package apparmor`)
      return undefined
    }
    const { stderr } = error as { stderr?: unknown }
    const why = typeof stderr === 'string' && stderr.trim() !== '' ? stderr.trim() : messageOf(error)
    const fault = `the AppArmor profile ${DEFAULT_APPARMOR_PROFILE} cannot be loaded: apparmor_parser says ${JSON.stringify(why.slice(0, 500))}; mend that, or set disable_apparmor = true`
    this.#tell(present ? `${fault} (the older version of it stays in force)` : fault)
    return fault
  }

  async #text(): Promise<string> {
    const there = async (path: string): Promise<boolean> => pathExists(join(this.#configDir, path))
    const [abi, tunables, abstractions, managerProfile] = await Promise.all([there('abi/3.0'), there('tunables/global'), there('abstractions/base'), this.#options.managerProfile()])
    return apparmorProfileText(DEFAULT_APPARMOR_PROFILE, { abi, tunables, abstractions, managerProfile })
  }

  /** Not for every container again. */
  #tell(message: string): void {
    if (this.#told !== message) this.#options.log.warn({ profile: DEFAULT_APPARMOR_PROFILE }, message)
    this.#told = message
  }
}

async function optionalText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}
