import { bool, fail, filled, integer, isObject, type Json, list, object, optional, text } from './fields.ts'
import { isDeviceName, isKind } from './names.ts'
import type { CdiDeviceNode, CdiEdits, CdiHook, CdiHookName, CdiIntelRdt, CdiMount, CdiNetDevice, CdiSpecification } from './specification.ts'

const VERSIONS = ['0.3.0', '0.4.0', '0.5.0', '0.6.0', '0.7.0', '0.8.0', '1.0.0', '1.1.0']
const HOOKS: readonly CdiHookName[] = ['prestart', 'createRuntime', 'createContainer', 'startContainer', 'poststart', 'poststop']
const uint32 = integer(0, 2 ** 32 - 1)
const deviceNumber = integer(-1, 2 ** 32 - 1)

/**
 * Checks a CDI specification that was read from JSON or YAML. Throws INVALID_ARGUMENT with the field that is wrong, also for a field that the
 * specification's own version does not have yet. `path` begins every message.
 */
export function parseCdiSpecification(document: unknown, path: string): CdiSpecification {
  const at = `CDI specification ${path}:`
  const json = object(document, at, ['cdiVersion', 'kind', 'annotations', 'devices', 'containerEdits'])
  const version = filled(json['cdiVersion'], `${at} cdiVersion`).replace(/^v/, '')
  if (!VERSIONS.includes(version)) fail(`${at} cdiVersion`, `${JSON.stringify(version)} is not supported; there are ${VERSIONS.join(', ')}`)
  const kind = filled(json['kind'], `${at} kind`)
  if (!isKind(kind)) fail(`${at} kind`, `${JSON.stringify(kind)} does not look like vendor.com/class`)
  annotations(json['annotations'], `${at} annotations`)
  const devices = new Map<string, CdiEdits>()
  for (const [name, deviceEdits] of list(json['devices'], `${at} devices`, device)) {
    if (devices.has(name)) fail(`${at} devices`, `has ${JSON.stringify(name)} twice`)
    devices.set(name, deviceEdits)
  }
  if (devices.size === 0) fail(`${at} devices`, 'is empty')
  requireVersion(version, json, at)
  return { kind, devices, edits: edits(json['containerEdits'], `${at} containerEdits`) }
}

function device(value: unknown, where: string): [string, CdiEdits] {
  const json = object(value, where, ['name', 'annotations', 'containerEdits'])
  const name = filled(json['name'], `${where}.name`)
  if (!isDeviceName(name)) fail(`${where}.name`, `${JSON.stringify(name)} is not a device name: letters, digits and "_.:-"`)
  annotations(json['annotations'], `${where}.annotations`)
  const result = edits(json['containerEdits'], `${where}.containerEdits`)
  if (result.intelRdt === undefined && Object.values(result).every((part) => Array.isArray(part) && part.length === 0)) fail(`${where}.containerEdits`, 'is empty: the device does nothing')
  return [name, result]
}

function annotations(value: unknown, where: string): void {
  if (value === undefined || value === null) return
  if (!isObject(value)) fail(where, 'is not an object')
  for (const [key, element] of Object.entries(value)) text(element, `${where}.${key}`)
}

function edits(value: unknown, where: string): CdiEdits {
  const json = value === undefined || value === null ? {} : object(value, where, ['env', 'deviceNodes', 'netDevices', 'hooks', 'mounts', 'intelRdt', 'additionalGids'])
  const netDevices = list(json['netDevices'], `${where}.netDevices`, netDevice)
  for (const key of ['hostInterfaceName', 'name'] as const) {
    if (new Set(netDevices.map((one) => one[key])).size < netDevices.length) fail(`${where}.netDevices`, `has one ${key} twice`)
  }
  return {
    env: list(json['env'], `${where}.env`, variable),
    deviceNodes: list(json['deviceNodes'], `${where}.deviceNodes`, deviceNode),
    netDevices,
    hooks: list(json['hooks'], `${where}.hooks`, hook),
    mounts: list(json['mounts'], `${where}.mounts`, mount),
    additionalGids: list(json['additionalGids'], `${where}.additionalGids`, uint32),
    ...(json['intelRdt'] === undefined || json['intelRdt'] === null ? {} : { intelRdt: intelRdt(json['intelRdt'], `${where}.intelRdt`) }),
  }
}

function variable(value: unknown, where: string): string {
  const line = text(value, where)
  return line.indexOf('=') > 0 ? line : fail(where, `${JSON.stringify(line)} is not NAME=VALUE`)
}

function absolute(value: unknown, where: string): string {
  const path = filled(value, where)
  return path.startsWith('/') ? path : fail(where, `${JSON.stringify(path)} is not an absolute path`)
}

function deviceNode(value: unknown, where: string): CdiDeviceNode {
  const json = object(value, where, ['path', 'hostPath', 'type', 'major', 'minor', 'fileMode', 'permissions', 'uid', 'gid'])
  return {
    path: absolute(json['path'], `${where}.path`),
    ...optional<Omit<CdiDeviceNode, 'path'>>(blankless(json, ['hostPath', 'type', 'permissions']), where, {
      hostPath: absolute, type: (given, place) => oneOf(given, place, ['b', 'c', 'u', 'p']), major: deviceNumber, minor: deviceNumber, fileMode: uint32, permissions, uid: uint32, gid: uint32,
    }),
  }
}

function permissions(value: unknown, where: string): string {
  const given = text(value, where)
  return given === 'none' || /^[rwm]+$/.test(given) ? given : fail(where, `${JSON.stringify(given)} is neither "none" nor letters out of "rwm"`)
}

function netDevice(value: unknown, where: string): CdiNetDevice {
  const json = object(value, where, ['hostInterfaceName', 'name'])
  return { hostInterfaceName: filled(json['hostInterfaceName'], `${where}.hostInterfaceName`), name: filled(json['name'], `${where}.name`) }
}

function hook(value: unknown, where: string): CdiHook {
  const json = object(value, where, ['hookName', 'path', 'args', 'env', 'timeout'])
  return {
    hookName: oneOf(json['hookName'], `${where}.hookName`, HOOKS),
    // Executed on the node as root: looked up in no search path.
    path: absolute(json['path'], `${where}.path`),
    ...optional<Omit<CdiHook, 'hookName' | 'path'>>(json, where, {
      args: (given, place) => list(given, place, text), env: (given, place) => list(given, place, variable), timeout: integer(1, 2 ** 31 - 1),
    }),
  }
}

function mount(value: unknown, where: string): CdiMount {
  const json = object(value, where, ['hostPath', 'containerPath', 'options', 'type'])
  return {
    // Not always a path: a tmpfs has "tmpfs" there.
    hostPath: filled(json['hostPath'], `${where}.hostPath`),
    containerPath: absolute(json['containerPath'], `${where}.containerPath`),
    ...optional<Omit<CdiMount, 'hostPath' | 'containerPath'>>(blankless(json, ['type']), where, { options: (given, place) => list(given, place, text), type: text }),
  }
}

function intelRdt(value: unknown, where: string): CdiIntelRdt {
  const json = object(value, where, ['closID', 'l3CacheSchema', 'memBwSchema', 'schemata', 'enableMonitoring'])
  return optional<CdiIntelRdt>(json, where, { closID, l3CacheSchema: text, memBwSchema: text, schemata: (given, place) => list(given, place, text), enableMonitoring: bool })
}

/** The name of a directory in resctrl, "/" for its root. */
function closID(value: unknown, where: string): string {
  const id = text(value, where)
  return id === '/' || (id.length < 4096 && id !== '.' && id !== '..' && !/[/\n]/.test(id)) ? id : fail(where, `${JSON.stringify(id)} is not the name of a class`)
}

function oneOf<T extends string>(value: unknown, where: string, allowed: readonly T[]): T {
  return allowed.find((one) => one === value) ?? fail(where, `${JSON.stringify(value)} is none of ${allowed.join(', ')}`)
}

/** An empty string says what an absent field says. */
function blankless(json: Json, keys: readonly string[]): Json {
  return Object.fromEntries(Object.entries(json).filter(([key, value]) => value !== '' || !keys.includes(key)))
}

/** What each version added, as the specification's list of changes has it. */
function requireVersion(version: string, json: Json, at: string): void {
  const devices = (Array.isArray(json['devices']) ? json['devices'] : []).filter(isObject)
  const allEdits = [json, ...devices].map((part) => part['containerEdits']).filter(isObject)
  const given = (key: string): Json[] => allEdits.flatMap((part) => (Array.isArray(part[key]) ? part[key] : [part[key]])).filter(isObject)
  const filledIn = (value: unknown): boolean => value !== undefined && value !== null && value !== ''
  const gids = allEdits.some((part) => Array.isArray(part['additionalGids']) && part['additionalGids'].length > 0)
  const needs: readonly (readonly [version: string, what: string, holds: boolean])[] = [
    ['1.1.0', 'netDevices', given('netDevices').length > 0],
    ['1.1.0', 'intelRdt.schemata and intelRdt.enableMonitoring', given('intelRdt').some((rdt) => filledIn(rdt['schemata']) || rdt['enableMonitoring'] === true)],
    ['0.7.0', 'intelRdt', given('intelRdt').length > 0],
    ['0.7.0', 'additionalGids', gids],
    ['0.6.0', 'annotations', [json, ...devices].some((part) => isObject(part['annotations']) && Object.keys(part['annotations']).length > 0)],
    ['0.6.0', 'a class with a dot', /\/.*\./.test(String(json['kind']))],
    ['0.5.0', 'deviceNodes.hostPath', given('deviceNodes').some((node) => filledIn(node['hostPath']))],
    ['0.5.0', 'a device name that begins with a digit', devices.some((one) => /^\d/.test(String(one['name'])))],
    ['0.4.0', 'mounts.type', given('mounts').some((one) => filledIn(one['type']))],
  ]
  for (const [minimum, what, holds] of needs) {
    if (holds && VERSIONS.indexOf(version) < VERSIONS.indexOf(minimum)) fail(`${at} cdiVersion`, `is ${version}, but ${what} came with ${minimum}`)
  }
}
