import { findPlugin } from './plugin-path.ts'
import type { ConfProblem, LoadedNetwork } from './types.ts'

export interface PluginStatus {
  readonly type: string
  /** Path of its binary, undefined when there is none that can be run. */
  readonly found: string | undefined
}

export interface NetworkStatus {
  readonly name: string
  readonly file: string
  readonly cniVersion: string
  readonly plugins: readonly PluginStatus[]
}

/** Whether pods can get a network, and if not, what to do. */
export interface CniStatus {
  readonly ready: boolean
  /** `''` when ready, else one of CNIConfigMissing, CNIConfigInvalid, CNIPluginMissing, CNIPluginNotReady. */
  readonly reason: string
  /** Why it is not ready; when it is, what is wrong all the same (a file that is passed over), or empty. */
  readonly message: string
  readonly networks: readonly NetworkStatus[]
}

export interface StatusInput {
  readonly confDir: string
  readonly confDirExists: boolean
  readonly binDirs: readonly string[]
  readonly networks: readonly LoadedNetwork[]
  readonly problems: readonly ConfProblem[]
  /** What the last STATUS of a plugin said, and why the directories cannot be watched; empty when all is well. */
  readonly notReady: string
  readonly watchProblem: string
}

export function statusOf(input: StatusInput): CniStatus {
  const missing = new Set<string>()
  const networks = input.networks.map(({ file, list }): NetworkStatus => ({
    name: list.name,
    file,
    cniVersion: list.cniVersion,
    plugins: list.plugins.map(({ type }): PluginStatus => {
      const found = findPlugin(type, input.binDirs)
      if (found.path === undefined) missing.add(found.problem)
      return { type, found: found.path }
    }),
  }))
  const notes = [...input.problems.map(describeProblem), ...(input.watchProblem === '' ? [] : [input.watchProblem])]
  const with_ = (first: string): string => [first, ...notes].filter((part) => part !== '').join('; ')
  const not = (reason: string, message: string): CniStatus => ({ ready: false, reason, message, networks })

  if (networks.length === 0 && input.problems.length > 0) return not('CNIConfigInvalid', with_(`no valid network conflist in ${input.confDir}`))
  if (networks.length === 0) {
    const why = input.confDirExists ? '' : ' (the directory does not exist)'
    return not('CNIConfigMissing', with_(`no network conflist in ${input.confDir}${why}: install a CNI network add-on, or put a file such as 10-mynet.conflist there; it is picked up at once`))
  }
  if (missing.size > 0) return not('CNIPluginMissing', with_([...missing].join('; ')))
  if (input.notReady !== '') return not('CNIPluginNotReady', with_(input.notReady))
  return { ready: true, reason: '', message: with_(''), networks }
}

/** For the status and the log. */
export function describeProblem({ file, problem, lastGoodInUse }: ConfProblem): string {
  return `${file} ${problem}: ${lastGoodInUse ? 'its last valid version stays in use; correct or remove it' : 'it is passed over; correct or remove it'}`
}
