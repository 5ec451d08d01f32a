// Every field that a CRI request can have, and the OCI spec that comes of it. `UPDATE_GOLDEN=1 node --test` writes expected.json anew: look at the difference.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { codeName, CriError } from '../../errors/cri-error.ts'
import type { ContainerConfig } from '../../generated/cri.ts'
import { parseCdiSpecification } from '../cdi/parse.ts'
import { CdiRegistry } from '../cdi/registry.ts'
import { requestedCdiDevices } from '../cdi/names.ts'
import { containerSpec } from '../container-spec.ts'
import { resolveUser } from '../resolve-user.ts'
import { sandboxSpec } from '../sandbox-spec.ts'
import { parsePolicyContexts, requirePolicy, selinuxLabels } from '../selinux.ts'
import { containerInput, sandboxInput } from '../spec-fixtures.ts'
import type { OciSpec } from '../types.ts'
import { userRequest } from '../user.ts'
import { leafFields } from './fields.ts'
import { type GoldenRequest, goldenRequests } from './requests.ts'

const FILE = join(import.meta.dirname, 'expected.json')
const PASSWD = 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n'
const GROUP = 'root:x:0:\napp:x:1001:\nstaff:x:2000:app\n'
const policy = requirePolicy(parsePolicyContexts('process="system_u:system_r:container_t:s0"\nfile="system_u:object_r:container_file_t:s0"'))
const cdi = new CdiRegistry([{ path: '/etc/cdi/x.json', priority: 0, specification: parseCdiSpecification({ cdiVersion: '0.6.0', kind: 'vendor.com/class', devices: [{ name: '0', containerEdits: { env: ['CDI=0'] } }] }, 'x') }], ['/etc/cdi'], [])

type Context = ContainerConfig['linux'] & object
const labels = (options: Parameters<typeof selinuxLabels>[0]['options'], podLabel: string) => selinuxLabels({ policy, options, podLabel, allocateLevel: () => 's0:c7,c8', virtualMachines: false })
const userOf = (context: Context['security_context'] | null, user: string) =>
  resolveUser(userRequest(context, { User: user }), PASSWD, GROUP, context?.supplemental_groups ?? [], context?.supplemental_groups_policy ?? 0)

/** The specs of a pod and a container in it, made as the service makes them, from looked-up things that are always the same. */
function specsOf({ pod = {}, container = {} }: GoldenRequest): Record<'sandbox' | 'container', OciSpec | string> {
  const changes = { pod, config: container, facts: { selinuxEnabled: true }, runtime: { podAnnotations: ['passed.io'], containerAnnotations: ['passed.io'] } }
  const localhost = { seccompProfile: '{"defaultAction":"SCMP_ACT_LOG"}' }
  const sandbox = outcome(() => {
    const base = sandboxInput(changes)
    const context = base.podConfig.linux?.security_context ?? null
    return sandboxSpec({ ...base, ...localhost, netnsPath: context?.namespace_options?.network === 2 ? undefined : base.netnsPath, user: userOf(context as Context['security_context'] | null, '65535:65535'), selinux: labels(context?.selinux_options ?? null, '') })
  })
  const made = outcome(() => {
    const base = containerInput(changes)
    const { config } = base
    const podContext = base.podConfig.linux?.security_context ?? null
    const context = config.linux?.security_context ?? null
    return containerSpec({
      ...base, ...localhost, netnsPath: podContext?.namespace_options?.network === 2 ? undefined : base.netnsPath, targetPid: 77, user: userOf(context, ''),
      selinux: labels(context?.selinux_options ?? null, labels(podContext?.selinux_options ?? null, '').recorded),
      mounts: config.mounts.map((mount) => ({
        origin: 'cri', containerPath: mount.container_path, hostPath: mount.image === null ? mount.host_path : '/run/images/0', readonly: mount.readonly, recursiveReadOnly: mount.recursive_read_only,
        propagation: mount.propagation, uidMappings: mount.uidMappings, gidMappings: mount.gidMappings, relabel: mount.selinux_relabel,
      })),
      devices: config.devices.map((device) => ({ path: device.container_path, type: 'c', major: 10, minor: 200, fileMode: 0o660, uid: 0, gid: 5, permissions: device.permissions })),
      cdi: { edits: cdi.resolve(requestedCdiDevices(config)), nodes: new Map() },
    })
  })
  return { sandbox, container: made }
}

function outcome(make: () => OciSpec): OciSpec | string {
  try {
    return JSON.parse(JSON.stringify(make(), (_key, value: unknown) => (typeof value === 'bigint' ? `${value}n` : value))) as OciSpec
  } catch (error) {
    if (error instanceof CriError) return `${codeName(error.code)}: ${error.message}`
    throw error
  }
}

/** What differs, by JSON pointer; a list that differs stands there whole. */
function difference(base: unknown, value: unknown, pointer = ''): Record<string, unknown> {
  const isTable = (one: unknown): one is Record<string, unknown> => typeof one === 'object' && one !== null && !Array.isArray(one)
  if (isTable(base) && isTable(value)) {
    return Object.assign({}, ...[...new Set([...Object.keys(base), ...Object.keys(value)])].map((key) => difference(base[key], value[key], `${pointer}/${key}`))) as Record<string, unknown>
  }
  return JSON.stringify(base) === JSON.stringify(value) ? {} : { [pointer]: value ?? '(absent)' }
}

const plain = specsOf({})
const defaultSeccomp = difference(plain.container, specsOf(goldenRequests['seccomp'] ?? {}).container)['/linux/seccomp']

function result(name: string, request: GoldenRequest): object {
  return Object.fromEntries(Object.entries(specsOf(request)).map(([which, spec]) => {
    const changes = typeof spec === 'string' ? spec : difference(plain[which as keyof typeof plain], spec)
    // Once is enough for the long profile.
    if (typeof changes === 'object' && name !== 'seccomp' && JSON.stringify(changes['/linux/seccomp']) === JSON.stringify(defaultSeccomp)) changes['/linux/seccomp'] = '(as in "seccomp")'
    return [which, changes]
  }))
}

const actual: Record<string, object> = { 'plain sandbox': plain.sandbox as OciSpec, 'plain container': plain.container as OciSpec, ...Object.fromEntries(Object.entries(goldenRequests).map(([name, request]) => [name, result(name, request)])) }
if (process.env['UPDATE_GOLDEN'] === '1') writeFileSync(FILE, `{\n${Object.entries(actual).map(([name, value]) => `  ${JSON.stringify(name)}: ${pretty(value, '  ')}`).join(',\n')}\n}\n`)
const expected = JSON.parse(readFileSync(FILE, 'utf8')) as Record<string, object>

/** A line for each field, lists on one line: what changes is a line of a diff. */
function pretty(value: unknown, indent: string): string {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return JSON.stringify(value)
  const entries = Object.entries(value)
  return entries.length === 0 ? '{}' : `{\n${entries.map(([key, element]) => `${indent}  ${JSON.stringify(key)}: ${pretty(element, `${indent}  `)}`).join(',\n')}\n${indent}}`
}

for (const [name, value] of Object.entries(actual)) test(`golden: ${name}`, () => assert.deepEqual(value, expected[name]))

test('golden: nothing is expected that no request asks for', () => assert.deepEqual(Object.keys(expected).filter((name) => !(name in actual)), []))

/** The fields that a request sets, in the names of leafFields(). */
function fieldsOf(value: unknown, leaves: ReadonlySet<string>, path = ''): string[] {
  if (leaves.has(path)) return [path]
  if (Array.isArray(value)) return value.flatMap((element) => fieldsOf(element, leaves, path))
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([key, element]) => fieldsOf(element, leaves, path === '' ? key : `${path}.${key}`))
}

for (const [message, of] of [['ContainerConfig', 'container'], ['PodSandboxConfig', 'pod']] as const) {
  test(`golden: every field of ${message} has a case`, () => {
    const leaves = new Set(leafFields(message))
    assert.ok(leaves.size > 60, 'the walk over the fields has found next to nothing')
    const given = new Set(Object.values(goldenRequests).flatMap((request) => fieldsOf(request[of] satisfies object | undefined, leaves)))
    assert.deepEqual([...leaves].filter((leaf) => !given.has(leaf)), [])
  })
}
