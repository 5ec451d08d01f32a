import type { PodSandboxConfig } from '../generated/cri.ts'

const PREFIX = 'io.kubernetes.cri.'

/**
 * Annotations by which runc and crun take orders as root: properties of the systemd unit (ExecStopPost= is one: CVE-2024-3154), hooks' output files, a
 * configuration file for CRIU.
 */
const ORDERS = ['org.systemd.property.', 'run.oci.', 'org.criu.config']

/**
 * The annotations that a runtime handler's allow-list lets through (`pod_annotations`, `container_annotations`). Those that a runtime takes orders by
 * pass only by a pattern that names them, never by a mere wildcard.
 */
export function passThroughAnnotations(annotations: Readonly<Record<string, string>>, patterns: readonly string[]): Record<string, string> {
  const matchers = patterns.map((pattern) => ({ pattern, matches: globMatcher(pattern) }))
  return Object.fromEntries(Object.entries(annotations).filter(([key]) => {
    const order = ORDERS.find((prefix) => key.startsWith(prefix))
    return matchers.some(({ pattern, matches }) => matches(key) && (order === undefined || pattern.startsWith(order)))
  }))
}

/** The annotations by which runtimes (kata, gVisor) know a sandbox. */
export function sandboxAnnotations(sandboxId: string, imageName: string, config: PodSandboxConfig): Record<string, string> {
  const resources = config.linux?.resources
  return {
    ...(resources === null || resources === undefined ? {} : {
      [`${PREFIX}sandbox-cpu-period`]: resources.cpu_period,
      [`${PREFIX}sandbox-cpu-quota`]: resources.cpu_quota,
      [`${PREFIX}sandbox-cpu-shares`]: resources.cpu_shares,
      [`${PREFIX}sandbox-memory`]: resources.memory_limit_in_bytes,
    }),
    ...podIdentity(sandboxId, config),
    [`${PREFIX}sandbox-log-directory`]: config.log_directory,
    [`${PREFIX}podsandbox.image-name`]: imageName,
    [`${PREFIX}container-type`]: 'sandbox',
  }
}

/** The annotations by which runtimes know a container and its sandbox. */
export function containerAnnotations(sandboxId: string, containerName: string, imageName: string, config: PodSandboxConfig): Record<string, string> {
  return {
    ...podIdentity(sandboxId, config),
    [`${PREFIX}container-name`]: containerName,
    [`${PREFIX}image-name`]: imageName,
    [`${PREFIX}container-type`]: 'container',
  }
}

function podIdentity(sandboxId: string, config: PodSandboxConfig): Record<string, string> {
  return {
    [`${PREFIX}sandbox-id`]: sandboxId,
    [`${PREFIX}sandbox-namespace`]: config.metadata?.namespace ?? '',
    [`${PREFIX}sandbox-uid`]: config.metadata?.uid ?? '',
    [`${PREFIX}sandbox-name`]: config.metadata?.name ?? '',
  }
}

/** Shell patterns with the meaning of Go's path.Match: `*` and `?` stop at a slash, `[a-z]` and `[^a-z]`, `\` escapes; a malformed one matches nothing. */
function globMatcher(pattern: string): (text: string) => boolean {
  const source = regexSource(pattern)
  if (source === undefined) return () => false
  try {
    const regex = new RegExp(`^${source}$`, 'su')
    return (text) => regex.test(text)
  } catch {
    return () => false
  }
}

function regexSource(pattern: string): string | undefined {
  let source = ''
  for (let index = 0; index < pattern.length; index++) {
    const char = pattern.charAt(index)
    // A run of stars means one: two in a row would only make the match slow.
    if (char === '*') {
      if (!source.endsWith('[^/]*')) source += '[^/]*'
    } else if (char === '?') source += '[^/]'
    else if (char === '[') {
      const end = pattern.indexOf(']', index + 2)
      if (end === -1) return undefined
      const body = pattern.slice(index + 1, end)
      const negated = body.startsWith('^')
      source += `[${negated ? '^' : ''}${body.slice(negated ? 1 : 0).replace(/[\\[\]^]/g, '\\$&')}]`
      index = end
    } else if (char === '\\') {
      index += 1
      if (index === pattern.length) return undefined
      source += RegExp.escape(pattern.charAt(index))
    } else source += RegExp.escape(char)
  }
  return source
}
