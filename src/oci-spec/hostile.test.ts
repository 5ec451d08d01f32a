// What pods must not get by their configuration alone, each after a vulnerability that a container runtime has had.
import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { NamespaceMode } from '../generated/cri.ts'
import { passThroughAnnotations } from './annotations.ts'
import { containerSpec } from './container-spec.ts'
import { sandboxSpec } from './sandbox-spec.ts'
import { containerInput, refusal, sandboxInput } from './spec-fixtures.ts'

test('CVE-2024-3154: no annotation is an order to systemd or the runtime unless the administrator\'s list names it', () => {
  const orders = { 'org.systemd.property.ExecStopPost': '[("/bin/sh", ["sh"], false)]', 'run.oci.hooks.stdout': '/etc/passwd', 'org.criu.config': '/x' }
  const annotations = { ...orders, 'team.name': 'a' }
  for (const patterns of [['*'], ['org.*'], ['org.systemd.*', 'run.*'], ['?rg.systemd.property.*'], ['[o]rg.systemd.property.ExecStopPost']]) {
    const passed = Object.keys(passThroughAnnotations(annotations, patterns)).filter((key) => key in orders)
    assert.deepEqual(passed, [], patterns.join())
  }
  assert.deepEqual(Object.keys(passThroughAnnotations(annotations, ['*'])), ['team.name'])
  assert.deepEqual(Object.keys(passThroughAnnotations(annotations, ['org.systemd.property.*', 'run.oci.hooks.stdout'])), ['org.systemd.property.ExecStopPost', 'run.oci.hooks.stdout'])
  const everything = { runtime: { podAnnotations: ['*'], containerAnnotations: ['*'] } }
  for (const spec of [sandboxSpec(sandboxInput({ ...everything, pod: { annotations } })), containerSpec(containerInput({ ...everything, pod: { annotations }, config: { annotations } }))]) {
    assert.deepEqual(Object.keys(spec.annotations ?? {}).filter((key) => key in orders), [])
  }
})

test('CVE-2025-47291: a pod in a user namespace is in the cgroup that the kubelet made for it', () => {
  const ids = [{ host_id: 65536, container_id: 0, length: 65536 }]
  const security_context = { namespace_options: { userns_options: { mode: NamespaceMode.POD, uids: ids, gids: ids } } }
  const pod = { linux: { cgroup_parent: '/kubepods/burstable/podx', security_context } }
  assert.equal(sandboxSpec(sandboxInput({ pod })).linux?.cgroupsPath, '/kubepods/burstable/podx/s1')
  assert.equal(containerSpec(containerInput({ pod, config: { linux: { security_context } } })).linux?.cgroupsPath, '/kubepods/burstable/podx/c1')
})

test('CVE-2022-24769: the inheritable set is empty, also out of a base spec and for privileged containers', () => {
  const given = ['CAP_KILL']
  const baseSpec = { ociVersion: '1.1.0', process: { cwd: '/', user: { uid: 0, gid: 0 }, capabilities: { bounding: given, effective: given, permitted: given, inheritable: given, ambient: given } } }
  assert.equal(containerSpec(containerInput({ runtime: { baseSpec } })).process?.capabilities?.inheritable, undefined)
  const context = { linux: { security_context: { privileged: true } } }
  assert.equal(containerSpec(containerInput({ runtime: { baseSpec }, config: context, pod: context })).process?.capabilities?.inheritable, undefined)
  assert.equal(sandboxSpec(sandboxInput()).process?.capabilities?.inheritable, undefined)
})

test('CVE-2026-15809, CVE-2022-4318: HOME has no line breaks, wherever it comes from', () => {
  const envs = (value: string) => ({ config: { envs: [{ key: 'HOME', value: Buffer.from(value) }] } })
  for (const value of ['/a\nb', '/a\r', '\n']) assert.throws(() => containerSpec(containerInput(envs(value))), refusal(Code.INVALID_ARGUMENT, /HOME has a line break/))
  const user = { uid: 1, gid: 1, additionalGids: [], home: '/a\rb' }
  assert.throws(() => containerSpec(containerInput({}, { user })), refusal(Code.INVALID_ARGUMENT, /HOME has a line break/))
  assert.ok(containerSpec(containerInput(envs('/a\\nb'))).process?.env?.includes('HOME=/a\\nb'))
})
