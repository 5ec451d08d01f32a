import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import type { SELinuxOption } from '../generated/cri.ts'
import { type AllocatedLabels, checkSelinuxOptions, formatContext, parseContext, parsePolicyContexts, requirePolicy, selinuxLabels } from './selinux.ts'
import { refusal } from './spec-fixtures.ts'

const CONTEXTS = `
# container-selinux
process = "system_u:system_r:container_t:s0"
file = "system_u:object_r:container_file_t:s0"
; others
ro_file="system_u:object_r:container_ro_file_t:s0"
kvm_process = "system_u:system_r:container_kvm_t:s0"
nonsense
`
const policy = requirePolicy(parsePolicyContexts(CONTEXTS))
const option = (given: Partial<SELinuxOption>): SELinuxOption => ({ user: '', role: '', type: '', level: '', ...given })
const labels = (options: SELinuxOption | null, podLabel = '', more: object = {}): AllocatedLabels => selinuxLabels({ policy, options, podLabel, allocateLevel: () => 's0:c7,c8', virtualMachines: false, ...more })
const POD = 'system_u:system_r:container_t:s0:c1,c2'

test('a policy is read, and a node without one is told what to install', () => {
  assert.equal(formatContext(policy.process), 'system_u:system_r:container_t:s0')
  assert.equal(policy.kvmProcess.type, 'container_kvm_t')
  assert.equal(requirePolicy(parsePolicyContexts('process="a:b:c"\nfile="a:b:d"')).kvmProcess.type, 'c')
  assert.equal(parsePolicyContexts('process = "a:b:c:s0"'), undefined)
  assert.equal(parsePolicyContexts(''), undefined)
  assert.throws(() => requirePolicy(undefined), refusal(Code.FAILED_PRECONDITION, /container-selinux.*enable_selinux = false/))
  assert.deepEqual(parseContext('u:r:t:s0-s0:c0.c3'), { user: 'u', role: 'r', type: 't', level: 's0-s0:c0.c3' })
  assert.deepEqual([parseContext('u:r'), parseContext(''), parseContext('u::t')], [undefined, undefined, undefined])
})

test('a pod gets a level of its own, its containers share it', () => {
  assert.deepEqual(labels(null), { recorded: 'system_u:system_r:container_t:s0:c7,c8', processLabel: 'system_u:system_r:container_t:s0:c7,c8', mountLabel: 'system_u:object_r:container_file_t:s0:c7,c8' })
  assert.deepEqual(labels(option({})), labels(null))
  const never = { allocateLevel: () => assert.fail('a container must not get another level than its pod') }
  assert.deepEqual(labels(null, POD, never), { recorded: POD, processLabel: POD, mountLabel: 'system_u:object_r:container_file_t:s0:c1,c2' })
  // Whoever asks for another type still shares the pod's volumes.
  assert.deepEqual(labels(option({ type: 'spc_t' }), POD, never), {
    recorded: 'system_u:system_r:spc_t:s0:c1,c2', processLabel: 'system_u:system_r:spc_t:s0:c1,c2', mountLabel: 'system_u:object_r:container_file_t:s0:c1,c2',
  })
  assert.equal(labels(null, 'staff_u:staff_r:web_t:s0:c1,c2', never).processLabel, 'staff_u:staff_r:web_t:s0:c1,c2')
})

test('what is asked for goes before the policy, and a given level needs no other', () => {
  const never = { allocateLevel: () => assert.fail('a level was given') }
  assert.deepEqual(labels(option({ user: 'staff_u', role: 'staff_r', type: 'web_t', level: 's0:c5,c6' }), POD, never), {
    recorded: 'staff_u:staff_r:web_t:s0:c5,c6', processLabel: 'staff_u:staff_r:web_t:s0:c5,c6', mountLabel: 'staff_u:object_r:container_file_t:s0:c5,c6',
  })
  assert.equal(labels(option({ level: 's0:c5,c6' }), '', never).mountLabel, 'system_u:object_r:container_file_t:s0:c5,c6')
})

test('a policy without levels gives none; processes of virtual machines have its type for them', () => {
  const flat = requirePolicy(parsePolicyContexts('process="a:b:c"\nfile="a:b:d"'))
  assert.deepEqual(labels(null, '', { policy: flat, allocateLevel: () => assert.fail('no levels') }), { recorded: 'a:b:c', processLabel: 'a:b:c', mountLabel: 'a:b:d' })
  const kvm = labels(null, POD, { virtualMachines: true })
  assert.deepEqual([kvm.recorded, kvm.processLabel], [POD, 'system_u:system_r:container_kvm_t:s0:c1,c2'])
})

test('options are checked also where SELinux is off', () => {
  for (const level of ['s0', 's0:c1', 's0:c1,c2', 's0:c0.c1023', 's0-s15:c0.c1023', 's0:c1,c3.c5']) checkSelinuxOptions(option({ level }))
  for (const level of ['s0;x', 's0:c1,c2:x', 'c1,c2', 's', 's0:c1,', 's0:c12345', 's0:c1\n']) {
    assert.throws(() => checkSelinuxOptions(option({ level })), refusal(Code.INVALID_ARGUMENT, /SELinux level/), level)
    assert.throws(() => labels(option({ level })), refusal(Code.INVALID_ARGUMENT, /SELinux level/), level)
  }
  for (const part of ['a:b', 'a b', 'a"b', 'a,b']) assert.throws(() => checkSelinuxOptions(option({ type: part })), refusal(Code.INVALID_ARGUMENT, /SELinux option/), part)
  checkSelinuxOptions(null)
})
