import assert from 'node:assert/strict'
import { test } from 'node:test'
import { podNetworkOf } from './result.ts'

const dual = {
  cniVersion: '1.0.0',
  interfaces: [{ name: 'cni0', mac: '02:00:00:00:00:01' }, { name: 'veth1', mac: '02:00:00:00:00:02' }, { name: 'eth0', mac: '02:00:00:00:00:03', sandbox: '/run/netns/x' }],
  ips: [
    { interface: 2, address: 'fd00:10:0:0::5/64', gateway: 'fd00:10::1' },
    { interface: 2, address: '10.1.0.5/16', gateway: '10.1.0.1' },
    { interface: 2, address: '10.1.0.6/16' },
  ],
  routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0', gw: 'fd00:10::1' }],
  dns: { nameservers: ['10.1.0.1'], domain: 'x.y', search: ['a'], options: ['ndots:2'] },
}

test('the preferred family comes first and the others keep their order', () => {
  const ips = (preference: 'ipv4' | 'ipv6' | 'cni', result: Record<string, unknown> = dual): readonly string[] => podNetworkOf([{ network: 'n', ifName: 'eth0', result }], preference).ips
  assert.deepEqual(ips('ipv4'), ['10.1.0.5', 'fd00:10::5', '10.1.0.6'])
  assert.deepEqual(ips('ipv6'), ['fd00:10::5', '10.1.0.5', '10.1.0.6'])
  assert.deepEqual(ips('cni'), ['fd00:10::5', '10.1.0.5', '10.1.0.6'])
  const onlyV4 = { ...dual, ips: dual.ips.slice(1) }
  assert.deepEqual(ips('ipv6', onlyV4), ['10.1.0.5', '10.1.0.6'])
})

test('the layout is the one of go-cni', () => {
  const second = { cniVersion: '0.4.0', interfaces: [{ name: 'eth1', sandbox: '/run/netns/x' }], ips: [{ version: '4', interface: 0, address: '10.9.0.2/24' }], dns: {} }
  const network = podNetworkOf([{ network: 'n', ifName: 'eth0', result: dual }, { network: 'm', ifName: 'eth1', result: second }], 'ipv4')
  assert.deepEqual(network.asGoCniResult, {
    Interfaces: {
      eth0: {
        IPConfigs: [{ IP: 'fd00:10::5', Gateway: 'fd00:10::1' }, { IP: '10.1.0.5', Gateway: '10.1.0.1' }, { IP: '10.1.0.6', Gateway: '' }],
        Mac: '02:00:00:00:00:03',
        Sandbox: '/run/netns/x',
        PciID: '',
        SocketPath: '',
      },
      cni0: { IPConfigs: null, Mac: '02:00:00:00:00:01', Sandbox: '', PciID: '', SocketPath: '' },
      veth1: { IPConfigs: null, Mac: '02:00:00:00:00:02', Sandbox: '', PciID: '', SocketPath: '' },
      eth1: { IPConfigs: [{ IP: '10.9.0.2', Gateway: '' }], Mac: '', Sandbox: '/run/netns/x', PciID: '', SocketPath: '' },
    },
    DNS: [{ nameservers: ['10.1.0.1'], domain: 'x.y', search: ['a'], options: ['ndots:2'] }, {}],
    Routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0', gw: 'fd00:10::1' }],
  })
  assert.equal(network.ips.includes('10.9.0.2'), false, 'the pod is known by the addresses of its first interface')
  assert.deepEqual(network.interfaces.map(({ name }) => name), ['eth0', 'cni0', 'veth1', 'eth1'])
})

test('addresses without an interface belong to eth0, in new and in old results', () => {
  const ips = (result: Record<string, unknown>): readonly string[] => podNetworkOf([{ network: 'n', ifName: 'eth0', result }], 'ipv4').ips
  assert.deepEqual(ips({ cniVersion: '0.3.1', ips: [{ version: '4', address: '10.1.0.5/16' }] }), ['10.1.0.5'])
  assert.deepEqual(ips({ cniVersion: '0.2.0', ip4: { ip: '10.1.0.5/16', routes: [{ dst: '0.0.0.0/0' }] }, ip6: { ip: 'fd00::1/64' } }), ['10.1.0.5', 'fd00::1'])
})

test('a result without an address, or one that contradicts itself, is an error that names the network', () => {
  const of = (result: Record<string, unknown>) => (): unknown => podNetworkOf([{ network: 'blue', ifName: 'eth0', result }], 'ipv4')
  assert.throws(of({ cniVersion: '1.0.0' }), /"blue" gave the pod no IP address on eth0/)
  assert.throws(of({ interfaces: [{ name: 'eth1' }], ips: [{ address: '10.1.0.5/16', interface: 0 }] }), /no IP address on eth0/)
  assert.throws(of({ interfaces: [], ips: [{ address: '10.1.0.5/16', interface: 3 }] }), /"blue" gives 10\.1\.0\.5 to interface 3, but lists 0/)
  assert.throws(of({ ips: [{ address: 'nonsense' }] }), /"nonsense" where an address/)
  assert.throws(of({ ips: 'x' }), /"ips" that is not a list/)
})
