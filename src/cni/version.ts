/** The newest version of the CNI specification that this service speaks. */
export const newestCniVersion = '1.1.0'

/** -1, 0 or 1. An empty version is 0.1.0, as the specification has it; undefined when one of them is no version. */
export function compareCniVersions(a: string, b: string): number | undefined {
  const left = parse(a)
  const right = parse(b)
  if (left === undefined || right === undefined) return undefined
  for (const i of [0, 1, 2] as const) {
    if (left[i] !== right[i]) return left[i] < right[i] ? -1 : 1
  }
  return 0
}

/** Whether `version` is `least` or newer. */
export function isAtLeast(version: string, least: string): boolean {
  return (compareCniVersions(version, least) ?? -1) >= 0
}

export function isCniVersion(version: string): boolean {
  return parse(version) !== undefined
}

function parse(version: string): [number, number, number] | undefined {
  if (version === '') return [0, 1, 0]
  const match = /^(\d+)(?:\.(\d+))?(?:\.(\d+))?$/.exec(version)
  return match === null ? undefined : [Number(match[1]), Number(match[2] ?? 0), Number(match[3] ?? 0)]
}
