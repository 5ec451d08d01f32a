import { invalidArgument, messageOf } from '../errors/cri-error.ts'
import { parseOciJson } from './json.ts'
import { type SeccompFacts, kernelAtLeast } from './seccomp-default.ts'
import type { OciSeccomp, OciSeccompArg, OciSyscallRule } from './types.ts'

const ACTION = /^SCMP_ACT_(KILL|KILL_PROCESS|KILL_THREAD|TRAP|ERRNO|TRACE|ALLOW|LOG|NOTIFY)$/
const OPERATOR = /^SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)$/

type Json = Readonly<Record<string, unknown>>

/**
 * A Localhost profile from its JSON text: the OCI form, or Docker's with `archMap`, `includes` and `excludes`, which are worked out for this
 * machine and container. Throws INVALID_ARGUMENT that names the profile and the part that is wrong.
 */
export function localhostSeccompProfile(name: string, text: string, facts: SeccompFacts): OciSeccomp {
  const fail = (what: string): never => {
    throw invalidArgument(`seccomp profile "${name}": ${what}`)
  }
  let json: unknown
  try {
    json = parseOciJson(text)
  } catch (error) {
    return fail(`it is not JSON: ${messageOf(error)}`)
  }
  const profile = objectOf(json) ?? fail('it is not a JSON object')
  const result: OciSeccomp = { defaultAction: action(profile['defaultAction'], 'defaultAction', fail) }
  if (profile['defaultErrnoRet'] !== undefined) result.defaultErrnoRet = uint(profile['defaultErrnoRet'], 'defaultErrnoRet', fail)
  const architectures = [
    ...strings(profile['architectures'], 'architectures', fail),
    ...list(profile['archMap'], 'archMap', fail).flatMap((element) => {
      const entry = objectOf(element) ?? fail('archMap has an element that is not an object')
      const main = entry['architecture']
      return typeof main === 'string' && matchesArch(main, facts.arch) ? [main, ...strings(entry['subArchitectures'], 'archMap.subArchitectures', fail)] : []
    }),
  ]
  if (architectures.length > 0) result.architectures = architectures
  const flags = strings(profile['flags'], 'flags', fail)
  if (flags.length > 0) result.flags = flags
  if (profile['listenerPath'] !== undefined) result.listenerPath = stringOf(profile['listenerPath'], 'listenerPath', fail)
  if (profile['listenerMetadata'] !== undefined) result.listenerMetadata = stringOf(profile['listenerMetadata'], 'listenerMetadata', fail)
  result.syscalls = list(profile['syscalls'], 'syscalls', fail).flatMap((element, index) => rule(element, `syscalls[${index}]`, facts, fail))
  return result
}

type Fail = (what: string) => never

function rule(element: unknown, where: string, facts: SeccompFacts, fail: Fail): OciSyscallRule[] {
  const json = objectOf(element) ?? fail(`${where} is not an object`)
  const includes = json['includes'] === undefined || json['includes'] === null ? {} : objectOf(json['includes']) ?? fail(`${where}.includes is not an object`)
  const excludes = json['excludes'] === undefined || json['excludes'] === null ? {} : objectOf(json['excludes']) ?? fail(`${where}.excludes is not an object`)
  if (!included(includes, facts, `${where}.includes`, fail) || excluded(excludes, facts, `${where}.excludes`, fail)) return []
  const names = typeof json['name'] === 'string' && json['name'] !== '' ? [json['name']] : strings(json['names'], `${where}.names`, fail)
  if (names.length === 0) fail(`${where} names no system call`)
  const args = list(json['args'], `${where}.args`, fail).map((arg, index) => argument(arg, `${where}.args[${index}]`, fail))
  return [{
    names,
    action: action(json['action'], `${where}.action`, fail),
    ...(json['errnoRet'] === undefined || json['errnoRet'] === null ? {} : { errnoRet: uint(json['errnoRet'], `${where}.errnoRet`, fail) }),
    ...(args.length === 0 ? {} : { args }),
  }]
}

function argument(element: unknown, where: string, fail: Fail): OciSeccompArg {
  const json = objectOf(element) ?? fail(`${where} is not an object`)
  const { index, value, valueTwo, op } = json
  if (typeof index !== 'number' || !Number.isInteger(index) || index < 0 || index > 5) return fail(`${where}.index is not in 0..5`)
  if (typeof op !== 'string' || !OPERATOR.test(op)) return fail(`${where}.op is not a comparison (SCMP_CMP_…)`)
  return { index, value: uint64(value ?? 0, `${where}.value`, fail), ...(valueTwo === undefined ? {} : { valueTwo: uint64(valueTwo, `${where}.valueTwo`, fail) }), op }
}

/** All of the conditions hold. */
function included(filter: Json, facts: SeccompFacts, where: string, fail: Fail): boolean {
  const arches = strings(filter['arches'], `${where}.arches`, fail)
  const caps = strings(filter['caps'], `${where}.caps`, fail)
  const minimum = minKernel(filter, where, fail)
  return (arches.length === 0 || arches.some((arch) => matchesArch(arch, facts.arch))) &&
    caps.every((cap) => facts.capabilities.includes(cap)) && (minimum === undefined || kernelAtLeast(facts.kernel, minimum))
}

/** Any of the conditions holds. */
function excluded(filter: Json, facts: SeccompFacts, where: string, fail: Fail): boolean {
  const minimum = minKernel(filter, where, fail)
  return strings(filter['arches'], `${where}.arches`, fail).some((arch) => matchesArch(arch, facts.arch)) ||
    strings(filter['caps'], `${where}.caps`, fail).some((cap) => facts.capabilities.includes(cap)) ||
    (minimum !== undefined && kernelAtLeast(facts.kernel, minimum))
}

function minKernel(filter: Json, where: string, fail: Fail): [number, number] | undefined {
  if (filter['minKernel'] === undefined || filter['minKernel'] === '') return undefined
  const match = /^(\d+)\.(\d+)/.exec(stringOf(filter['minKernel'], `${where}.minKernel`, fail)) ?? fail(`${where}.minKernel is not a version`)
  return [Number(match[1]), Number(match[2])]
}

const SCMP_OF_GOARCH: Readonly<Record<string, string>> = {
  amd64: 'SCMP_ARCH_X86_64', arm64: 'SCMP_ARCH_AARCH64', s390x: 'SCMP_ARCH_S390X', riscv64: 'SCMP_ARCH_RISCV64', loong64: 'SCMP_ARCH_LOONGARCH64',
  ppc64le: 'SCMP_ARCH_PPC64LE', arm: 'SCMP_ARCH_ARM', 386: 'SCMP_ARCH_X86',
}

const matchesArch = (written: string, arch: string): boolean => written === arch || written === SCMP_OF_GOARCH[arch]

function objectOf(value: unknown): Json | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : undefined
}

function list(value: unknown, where: string, fail: Fail): unknown[] {
  if (value === undefined || value === null) return []
  return Array.isArray(value) ? value : fail(`${where} is not an array`)
}

function strings(value: unknown, where: string, fail: Fail): string[] {
  return list(value, where, fail).map((element) => stringOf(element, where, fail))
}

function stringOf(value: unknown, where: string, fail: Fail): string {
  return typeof value === 'string' ? value : fail(`${where} is not a string`)
}

function action(value: unknown, where: string, fail: Fail): string {
  return typeof value === 'string' && ACTION.test(value) ? value : fail(`${where} is not an action (SCMP_ACT_…)`)
}

function uint(value: unknown, where: string, fail: Fail): number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : fail(`${where} is not a number`)
}

function uint64(value: unknown, where: string, fail: Fail): number | bigint {
  if (typeof value === 'bigint' && value >= 0n && value < 2n ** 64n) return value
  return uint(value, where, fail)
}
