import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { capabilityArgsOf, cniArgsOf, pluginInput } from './capabilities.ts'
import { parseConflist } from './conflist.ts'
import type { CniPod } from './types.ts'

const pod: CniPod = {
  id: 'abc',
  namespace: 'kube-system',
  name: 'dns-1',
  uid: 'u-1',
  netnsPath: '/run/netns/x',
  annotations: { a: 'b' },
  portMappings: [
    { hostPort: 8080, containerPort: 80, protocol: 'TCP', hostIP: '' },
    { hostPort: 0, containerPort: 81, protocol: 'TCP' },
    { hostPort: 53, containerPort: 5353, protocol: 'UDP', hostIP: '127.0.0.1' },
  ],
  bandwidth: { ingressRate: 1000, ingressBurst: 1, egressRate: 0, egressBurst: 0 },
  dns: { servers: ['10.0.0.1'], searches: ['a.b'], options: ['ndots:5'] },
  cgroupPath: '/kubepods/x',
  ipRanges: [[{ subnet: '10.1.0.0/16' }]],
  mac: '02:00:00:00:00:01',
  aliases: { net: ['web'] },
  infinibandGuid: 'guid',
  deviceId: 'dev',
}

test('a plugin gets the capabilities that it declares, and no other', () => {
  const list = parseConflist(JSON.stringify({
    cniVersion: '1.0.0',
    name: 'net',
    plugins: [
      { type: 'a', capabilities: { portMappings: true, bandwidth: false, unknown: true }, keep: { me: 1 }, name: 'other', cniVersion: '0.2.0' },
      { type: 'b' },
      { type: 'c', capabilities: Object.fromEntries(['bandwidth', 'dns', 'cgroupPath', 'io.kubernetes.cri.pod-annotations', 'ipRanges', 'mac', 'aliases', 'infinibandGUID', 'deviceID'].map((key) => [key, true])) },
    ],
  }))
  const [a, b, c] = list.plugins.map((plugin) => JSON.parse(pluginInput(plugin, list, capabilityArgsOf(pod), { ips: [] })) as Record<string, unknown>)
  assert.deepEqual(a?.['runtimeConfig'], {
    portMappings: [
      { hostPort: 8080, containerPort: 80, protocol: 'tcp' },
      { hostPort: 53, containerPort: 5353, protocol: 'udp', hostIP: '127.0.0.1' },
    ],
  })
  assert.deepEqual([a?.['name'], a?.['cniVersion'], a?.['keep'], a?.['prevResult']], ['net', '1.0.0', { me: 1 }, { ips: [] }])
  assert.ok(b !== undefined && !('runtimeConfig' in b))
  assert.deepEqual(c?.['runtimeConfig'], {
    bandwidth: pod.bandwidth,
    dns: pod.dns,
    cgroupPath: '/kubepods/x',
    'io.kubernetes.cri.pod-annotations': { a: 'b' },
    ipRanges: [[{ subnet: '10.1.0.0/16' }]],
    mac: '02:00:00:00:00:01',
    aliases: { net: ['web'] },
    infinibandGUID: 'guid',
    deviceID: 'dev',
  })
})

test('the first plugin gets no prevResult, and a pod without anything no runtimeConfig', () => {
  const list = parseConflist(JSON.stringify({ name: 'net', plugins: [{ type: 'a', capabilities: { portMappings: true, dns: true } }] }))
  const bare = { id: 'abc', namespace: 'n', name: 'p', uid: 'u', netnsPath: '' }
  const inputs = list.plugins.map((plugin) => JSON.parse(pluginInput(plugin, list, capabilityArgsOf(bare), undefined)) as unknown)
  assert.deepEqual(inputs, [{ type: 'a', capabilities: { portMappings: true, dns: true }, name: 'net', cniVersion: '' }])
})

test('CNI_ARGS name the pod, and a pod cannot forge them', () => {
  assert.deepEqual(cniArgsOf({ ...pod, extraArgs: { IP: '10.1.2.3' } }), [
    ['IgnoreUnknown', '1'],
    ['K8S_POD_NAMESPACE', 'kube-system'],
    ['K8S_POD_NAME', 'dns-1'],
    ['K8S_POD_INFRA_CONTAINER_ID', 'abc'],
    ['K8S_POD_UID', 'u-1'],
    ['IP', '10.1.2.3'],
  ])
  for (const forged of [{ ...pod, name: 'x;K8S_POD_NAMESPACE=other' }, { ...pod, uid: 'a\0b' }, { ...pod, extraArgs: { 'a=b': 'c' } }]) {
    assert.throws(() => cniArgsOf(forged), (error: unknown) => error instanceof CriError && error.code === Code.INVALID_ARGUMENT)
  }
})
