import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type LinuxPodSandboxConfig, NamespaceMode } from '../../generated/cri.ts'
import type { Init } from '../../generated/int64.ts'
import { containerMounts } from '../../oci-spec/mounts.ts'
import { hostFacts, podConfig, runtime } from '../../oci-spec/spec-fixtures.ts'
import type { Sandbox } from '../../state/records.ts'
import { Layout } from '../../state/status-file.ts'
import { podMounts } from './pod-mounts.ts'

const layout = new Layout('/root', '/state')
const sandbox = (linux: Init<LinuxPodSandboxConfig> = {}): Sandbox => ({ id: 's1', metadata: { config: podConfig({ linux }) } }) as unknown as Sandbox

async function made(pod: Sandbox, mountLabel: string, missing: readonly string[] = []) {
  const relabelled: string[] = []
  const selinux = { relabel: (path: string, label: string) => Promise.resolve(void relabelled.push(`${path} ${label}`)) }
  const mounts = await podMounts({ layout, selinux, exists: (path) => Promise.resolve(!missing.some((part) => path.includes(part))) }, pod, { readonly: false, mountLabel })
  return { mounts, relabelled }
}

test('CVE-2021-43816: only the pod\'s own files are relabelled, not what a request mounts in their place', async () => {
  const { mounts, relabelled } = await made(sandbox(), 'a:b:c')
  assert.deepEqual(relabelled.map((line) => line.split(' ')[0]?.replace(/^.*\//, '')), ['hostname', 'hosts', 'resolv.conf', 'shm'])
  assert.ok(relabelled.every((line) => /^\/(root|state)\/.*s1\/.* a:b:c$/.test(line)), relabelled.join('\n'))
  const victim = { origin: 'cri' as const, containerPath: '/etc/hosts', hostPath: '/var/lib/victim', readonly: false, relabel: false }
  const spec = containerMounts({ base: [], mounts: [...mounts, victim], privileged: false, cgroupNamespace: true, bindSysfs: false, hostFacts, runtime })
  assert.deepEqual(spec.mounts.filter(({ destination }) => destination === '/etc/hosts').map(({ source }) => source), ['/var/lib/victim'])
  assert.ok(!relabelled.some((line) => line.includes('victim')))
})

test('the node\'s own /dev/shm keeps its label, and without SELinux nothing is labelled', async () => {
  const shared = await made(sandbox({ security_context: { namespace_options: { ipc: NamespaceMode.NODE } } }), 'a:b:c')
  assert.equal(shared.mounts.at(-1)?.hostPath, '/dev/shm')
  assert.equal(shared.relabelled.length, 3)
  assert.deepEqual((await made(sandbox(), '')).relabelled, [])
  assert.deepEqual((await made(sandbox(), 'a:b:c', ['host'])).mounts.map(({ containerPath }) => containerPath), ['/etc/resolv.conf', '/dev/shm'])
})
