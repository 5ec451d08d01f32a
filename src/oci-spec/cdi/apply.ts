import { failedPrecondition } from '../../errors/cri-error.ts'
import type { OciDevice, OciDeviceCgroup, OciHooks, OciMount, OciProcess, OciSpec } from '../types.ts'
import type { CdiDeviceNode, CdiEdits, CdiHook, CdiMount } from './specification.ts'

/** What lies at a path of the node's /dev; undefined when nothing does or it is no device. */
export interface CdiHostNode {
  readonly type: 'b' | 'c' | 'p'
  readonly major: number
  readonly minor: number
  readonly fileMode: number
}

/** The edits of the devices that a container asks for, and the node's device files that they name. */
export interface CdiInjection {
  readonly edits: readonly CdiEdits[]
  /** By the paths of hostNodePaths(). */
  readonly nodes: ReadonlyMap<string, CdiHostNode | undefined>
}

const hostPathOf = (node: CdiDeviceNode): string => node.hostPath ?? node.path

/** The paths of the node's devices that edits name: the caller looks them up. */
export function hostNodePaths(edits: readonly CdiEdits[]): string[] {
  return [...new Set(edits.flatMap(({ deviceNodes }) => deviceNodes.map(hostPathOf)))]
}

/**
 * A spec with the edits of CDI devices made to it (CDI's SPEC.md, "OCI Edits"): variables, devices and mounts replace those of the same name
 * or path. Throws FAILED_PRECONDITION for a device node that the node does not have and the specification does not describe in full.
 */
export function applyCdiEdits(spec: OciSpec, { edits, nodes }: CdiInjection): OciSpec {
  const all = <T>(part: (one: CdiEdits) => readonly T[]): T[] => edits.flatMap(part)
  const process: OciProcess = spec.process ?? { cwd: '/', user: { uid: 0, gid: 0 } }
  const devices = all(({ deviceNodes }) => deviceNodes).map((node) => ({ device: ociDevice(node, nodes.get(hostPathOf(node)), process), node }))
  const mounts = all((one) => one.mounts)
  const rdt = edits.findLast(({ intelRdt }) => intelRdt !== undefined)?.intelRdt
  const netDevices = all((one) => one.netDevices)
  return {
    ...spec,
    process: { ...process, env: withVariables(process.env ?? [], all(({ env }) => env)), user: withGroups(process.user, all(({ additionalGids }) => additionalGids)) },
    ...withMounts(spec, mounts),
    ...withHooks(spec, all(({ hooks }) => hooks)),
    linux: {
      ...spec.linux,
      ...(devices.length === 0 ? {} : {
        devices: replacing(spec.linux?.devices ?? [], devices.map(({ device }) => device), ({ path }) => path),
        resources: { ...spec.linux?.resources, devices: [...(spec.linux?.resources?.devices ?? []), ...devices.flatMap(({ device, node }) => cgroupRule(device, node))] },
      }),
      ...(rdt === undefined ? {} : { intelRdt: { ...rdt } }),
      ...(netDevices.length === 0 ? {} : { netDevices: { ...spec.linux?.netDevices, ...Object.fromEntries(netDevices.map(({ hostInterfaceName, name }) => [hostInterfaceName, { name }])) } }),
    },
  }
}

/** Those with the key of a new one go; of new ones with one key the last stays. */
function replacing<T>(old: readonly T[], added: readonly T[], key: (element: T) => string): T[] {
  const byKey = new Map(added.map((element) => [key(element), element]))
  return [...old.filter((element) => !byKey.has(key(element))), ...byKey.values()]
}

function withVariables(env: readonly string[], added: readonly string[]): string[] {
  const name = (line: string): string => line.slice(0, line.indexOf('='))
  const result = new Map([...env, ...added].map((line) => [name(line), line]))
  return [...result.values()]
}

/** 0 is not added: no device is worth root's group. */
function withGroups(user: OciProcess['user'], gids: readonly number[]): OciProcess['user'] {
  const added = gids.filter((gid) => gid !== 0)
  return added.length === 0 ? user : { ...user, additionalGids: [...new Set([...(user.additionalGids ?? []), ...added])] }
}

function ociDevice(node: CdiDeviceNode, host: CdiHostNode | undefined, process: OciProcess): OciDevice {
  const described = node.type !== undefined && (node.type === 'p' || (node.major ?? 0) !== 0)
  if (host === undefined && !described) {
    throw failedPrecondition(`CDI device node ${hostPathOf(node)} does not exist on this node, or is not a device: see that its driver is loaded`, { reason: 'CdiDeviceNodeMissing' })
  }
  const wanted = node.type === 'u' ? 'c' : node.type
  if (!described && host !== undefined && wanted !== undefined && wanted !== host.type) {
    throw failedPrecondition(`CDI device node ${hostPathOf(node)} is of type ${host.type} on this node, its specification says ${node.type}: write the specification anew`, { reason: 'CdiDeviceNodeType' })
  }
  const type = node.type ?? host?.type ?? 'c'
  const numbers = described || host === undefined || type === 'p' ? { major: node.major ?? 0, minor: node.minor ?? 0 } : { major: host.major, minor: host.minor }
  const fileMode = node.fileMode ?? host?.fileMode
  const uid = node.uid ?? (process.user.uid > 0 ? process.user.uid : undefined)
  const gid = node.gid ?? (process.user.gid > 0 ? process.user.gid : undefined)
  return {
    path: node.path, type, ...numbers,
    ...(fileMode === undefined ? {} : { fileMode: fileMode & 0o7777 }), ...(uid === undefined ? {} : { uid }), ...(gid === undefined ? {} : { gid }),
  }
}

function cgroupRule({ type, major, minor }: OciDevice, { permissions }: CdiDeviceNode): OciDeviceCgroup[] {
  if (type === 'p' || permissions === 'none') return []
  return [{ allow: true, type: type === 'b' ? 'b' : 'c', major, minor, access: permissions ?? 'rwm' }]
}

function withMounts(spec: OciSpec, added: readonly CdiMount[]): Pick<OciSpec, 'mounts'> {
  if (added.length === 0) return {}
  const mapped = spec.linux?.namespaces?.some(({ type }) => type === 'user') === true
  const clean = (path: string): string => path.replace(/\/+/g, '/').replace(/(.)\/$/, '$1')
  const all = replacing(spec.mounts ?? [], added.map((mount) => ociMount(mount, mapped)), ({ destination }) => clean(destination))
  // Shallow ones first, so that none hides another.
  return { mounts: all.toSorted((a, b) => clean(a.destination).split('/').length - clean(b.destination).split('/').length) }
}

/** In a user namespace a bind mount is mapped as the pod is, or its files would be nobody's. */
function ociMount({ hostPath, containerPath, type, options = [] }: CdiMount, mapped: boolean): OciMount {
  const has = (option: string): boolean => options.includes(option)
  const mapping = !mapped || has('idmap') || has('ridmap') ? undefined : has('rbind') ? 'ridmap' : type === 'bind' || has('bind') ? 'idmap' : undefined
  return { destination: containerPath, source: hostPath, ...(type === undefined ? {} : { type }), options: [...options, ...(mapping === undefined ? [] : [mapping])] }
}

function withHooks(spec: OciSpec, added: readonly CdiHook[]): Pick<OciSpec, 'hooks'> {
  if (added.length === 0) return {}
  const hooks: OciHooks = { ...spec.hooks }
  for (const { hookName, ...hook } of added) hooks[hookName] = [...(hooks[hookName] ?? []), hook]
  return { hooks }
}
