import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { podIn, Sandbox, testSignal } from './test-support.ts'

async function addFailure(sandbox: Sandbox): Promise<CriError> {
  sandbox.conf('10-a.conflist', { cniVersion: '1.0.0', name: 'a', plugins: [{ type: 'fake' }] })
  const manager = sandbox.manager()
  await manager.start()
  return manager.add(podIn('/nowhere'), testSignal()).then(
    () => assert.fail('ADD succeeded'),
    (error: unknown) => error instanceof CriError ? error : assert.fail(String(error)),
  )
}

test('what a failing plugin says, or does not say, becomes a message with a remedy', async () => {
  const json = (fields: Record<string, unknown>): string => `[ "$CNI_COMMAND" = ADD ] || exit 0; echo '${JSON.stringify(fields)}'; exit 1`
  const cases: readonly [string, Code, RegExp][] = [
    [json({ code: 1, msg: 'incompatible' }), Code.FAILED_PRECONDITION, /plugin fake failed to ADD for pod default\/web: incompatible \(CNI error 1\); the installed fake does not speak version "1\.0\.0"/],
    [json({ code: 7, msg: 'bad subnet' }), Code.FAILED_PRECONDITION, /correct the network's configuration/],
    [json({ code: 999, msg: 'exec: "iptables": executable file not found in $PATH' }), Code.INTERNAL, /install the program/],
    [json({ code: 999, msg: 'failed to find plugin "dhcp" in path [/x]' }), Code.FAILED_PRECONDITION, /an IPAM plugin, most likely/],
    [json({ msg: 'dial unix /run/agent.sock: connect: no such file or directory' }), Code.UNAVAILABLE, /daemon does not answer/],
    ['[ "$CNI_COMMAND" = ADD ] || exit 0; echo boom >&2; exit 7', Code.INTERNAL, /ended with exit code 7 and no error message; standard error: "boom"/],
    ['[ "$CNI_COMMAND" = ADD ] || exit 0; echo text; exit 1', Code.INTERNAL, /ended with exit code 1 and "text"/],
    ['[ "$CNI_COMMAND" = ADD ] || exit 0; kill -9 $$', Code.INTERNAL, /killed by SIGKILL \(out of memory, perhaps/],
    ['echo hello', Code.INTERNAL, /printed no result but "hello"/],
    ['true', Code.INTERNAL, /printed no result but nothing/],
    [`echo '{"cniVersion":"1.0.0"}'`, Code.INTERNAL, /gave the pod no IP address on eth0/],
  ]
  for (const [script, code, pattern] of cases) {
    using sandbox = new Sandbox()
    sandbox.plugin('fake', script)
    const error = await addFailure(sandbox)
    assert.match(error.message, pattern)
    assert.equal(error.code, code, error.message)
    assert.deepEqual(sandbox.cached, [], 'undone')
  }
})

test('a program for another machine is told apart from a failing plugin', async () => {
  using sandbox = new Sandbox()
  writeFileSync(join(sandbox.binDir, 'fake'), Buffer.from('\x7fELF\x02\x01\x01\x00(\n)\n', 'latin1'), { mode: 0o755 })
  assert.match((await addFailure(sandbox)).message, /is it built for this machine \(\w+\)\?/)
})

test('DEL succeeds when the plugin only says that things are gone, and fails when it could not do its work', async () => {
  const gone = [{ code: 3, msg: 'unknown' }, { code: 999, msg: 'Link not found' }, { code: 999, msg: 'failed to open netns "/run/netns/x": no such file or directory' }]
  const failed = [
    { code: 999, msg: 'exec: "iptables": executable file not found in $PATH' },
    { code: 999, msg: 'dial unix /run/agent.sock: connect: no such file or directory' },
    { code: 999, msg: 'permission denied' },
  ]
  for (const said of [...gone, ...failed]) {
    using sandbox = new Sandbox()
    sandbox.plugin('fake', `[ "$CNI_COMMAND" = ADD ] && { echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'; exit 0; }; echo '${JSON.stringify(said)}'; exit 1`)
    sandbox.conf('10-a.conflist', { cniVersion: '1.0.0', name: 'a', plugins: [{ type: 'fake' }] })
    const manager = sandbox.manager()
    await manager.start()
    const pod = podIn('/run/netns/x')
    await manager.add(pod, testSignal())
    if (gone.includes(said)) await manager.del(pod, testSignal())
    else await assert.rejects(manager.del(pod, testSignal()), (error: unknown) => error instanceof CriError && error.message.includes(said.msg))
    assert.equal(sandbox.cached.length, gone.includes(said) ? 0 : 1, said.msg)
  }
})

test('DEL without a network, a record and a configuration is nothing to do; a loopback record of another runtime is put away', async () => {
  using sandbox = new Sandbox()
  const manager = sandbox.manager()
  await manager.start()
  const pod = podIn('')
  await manager.del(pod, testSignal())
  const record = { kind: 'cniCacheV1', containerId: pod.id, networkName: 'cni-loopback', ifName: 'lo', config: Buffer.from('{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}').toString('base64') }
  mkdirSync(join(sandbox.cacheDir, 'results'), { recursive: true })
  writeFileSync(join(sandbox.cacheDir, 'results', `cni-loopback-${pod.id}-lo`), JSON.stringify(record))
  assert.equal((await manager.listCached()).length, 1)
  await manager.del(pod, testSignal())
  assert.deepEqual(sandbox.cached, [])
})

test('ids that would leave the cache directory are refused', async () => {
  using sandbox = new Sandbox()
  const manager = sandbox.manager()
  await manager.start()
  for (const id of ['../x', '', 'a/b', '-a']) {
    const refused = (error: unknown): boolean => error instanceof CriError && error.code === Code.INVALID_ARGUMENT
    await assert.rejects(manager.add(podIn('/x', { id }), testSignal()), refused)
    await assert.rejects(manager.del(podIn('/x', { id }), testSignal()), refused)
    await assert.rejects(manager.delCached(id), refused)
  }
})

test('a pod whose ADD was refused for its name can be removed', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', 'touch "$dir/ran"')
  sandbox.conf('10-a.conflist', { cniVersion: '1.0.0', name: 'a', plugins: [{ type: 'fake' }] })
  const manager = sandbox.manager()
  await manager.start()
  const forged = podIn('/x', { name: 'x;K8S_POD_NAMESPACE=other' })
  await assert.rejects(manager.add(forged, testSignal()), (error: unknown) => error instanceof CriError && error.code === Code.INVALID_ARGUMENT)
  await manager.del(forged, testSignal())
  assert.throws(() => sandbox.read('ran'), /ENOENT/)
})
