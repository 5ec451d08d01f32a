import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { cannotRunPlugins, fileExists, ip, podIn, PrivateHost, testSignal } from './test-support.ts'

const failsWith = (code: Code, ...patterns: RegExp[]) => (error: unknown): boolean => {
  assert.ok(error instanceof CriError, String(error))
  for (const pattern of patterns) assert.match(error.message, pattern)
  assert.equal(error.code, code, error.message)
  return true
}

/** Writes down how it was called, in `calls`, and passes the previous result on. */
const recorder = `input=$(cat); printf '%s|%s|%s|%s\\n' "$CNI_COMMAND" "$CNI_NETNS" "$CNI_ARGS" "$input" >> "$dir/calls"
[ "$CNI_COMMAND" = ADD ] && printf '%s' "$input" | sed 's/.*"prevResult":\\(.*\\)}$/\\1/'; exit 0`

interface Call {
  readonly command: string
  readonly netns: string
  readonly args: string
  readonly input: Record<string, unknown>
}

function calls(host: PrivateHost): Call[] {
  return host.read('calls').trim().split('\n').map((line) => {
    const [command = '', netns = '', args = '', ...input] = line.split('|')
    return { command, netns, args, input: JSON.parse(input.join('|')) as Record<string, unknown> }
  })
}

describe('real plugins in network namespaces', { skip: cannotRunPlugins, concurrency: 2 }, () => {
  test('a whole chain: ADD, CHECK and DEL leave the node as it was', async () => {
    using host = new PrivateHost()
    host.conf('10-net.conflist', {
      cniVersion: '1.0.0',
      name: 'whole',
      plugins: [
        host.bridge(),
        { type: 'portmap', capabilities: { portMappings: true } },
        { type: 'firewall' },
        { type: 'tuning', sysctl: { 'net.core.somaxconn': '500' } },
        { type: 'bandwidth', capabilities: { bandwidth: true } },
      ],
    })
    const observed: string[] = []
    const manager = host.manager({ observe: (plugin, command, seconds, failed) => void observed.push(`${command} ${plugin} ${failed} ${seconds > 0}`) })
    await manager.start()
    assert.deepEqual([manager.status().ready, manager.status().message], [true, ''])
    const bandwidth = { ingressRate: 1_000_000, ingressBurst: 1_000_000, egressRate: 2_000_000, egressBurst: 2_000_000 }
    const pod = podIn(host.netns(), {
      portMappings: [{ hostPort: 18080, containerPort: 80, protocol: 'TCP' }],
      bandwidth,
    })
    const network = await manager.add(pod, testSignal())

    assert.deepEqual(network.ips, ['10.222.71.2'])
    const netns = pod.netnsPath.slice('/run/netns/'.length)
    assert.match(ip('-n', netns, '-o', 'addr', 'show', 'eth0'), /inet 10\.222\.71\.2\/24/)
    assert.match(ip('-n', netns, 'route'), /default via 10\.222\.71\.1/)
    assert.match(ip('netns', 'exec', netns, 'sysctl', '-n', 'net.core.somaxconn'), /^500$/m)
    assert.match(host.run('iptables-save', '-t', 'nat'), /--dport 18080 .*--to-destination 10\.222\.71\.2:80/)
    assert.match(host.run('iptables-save', '-t', 'filter'), /-s 10\.222\.71\.2\/32 .*-j ACCEPT/)
    assert.match(host.run('tc', 'qdisc', 'show'), /tbf .*rate 1Mbit/)
    const firstIface = network.interfaces.find(({ name }) => name === 'eth0')
    assert.deepEqual([firstIface?.sandbox, firstIface?.ips], [pod.netnsPath, [{ ip: '10.222.71.2', gateway: '10.222.71.1' }]])
    assert.deepEqual(host.cached, [`whole-${pod.id}-eth0`])
    assert.deepEqual(observed, ['bridge', 'portmap', 'firewall', 'tuning', 'bandwidth'].map((type) => `ADD ${type} false true`))

    // Without ports but with a rate: the CHECK of portmap 1.1.1 looks for the rules of IPv4 in the tables of IPv6, that of bandwidth needs a rate.
    const portless = podIn(host.netns(), { bandwidth })
    await manager.add(portless, testSignal())
    await manager.check(portless, testSignal())
    ip('-n', portless.netnsPath.slice('/run/netns/'.length), 'route', 'del', 'default')
    await assert.rejects(manager.check(portless, testSignal()), failsWith(Code.INTERNAL, /"whole": plugin bridge failed to CHECK for pod default\/web/))
    await manager.del(portless, testSignal())
    assert.deepEqual([host.leases, host.veths.length, host.cached], [['10.222.71.2'], 1, [`whole-${pod.id}-eth0`]])

    await manager.del(pod, testSignal())
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
    assert.doesNotMatch(host.run('iptables-save'), /10\.222\.71\.\d/)
    assert.equal(ip('-n', netns, '-o', 'link').includes('eth0'), false)
    await manager.del(pod, testSignal())
    await assert.rejects(manager.check(pod, testSignal()), failsWith(Code.NOT_FOUND, /no CNI result is recorded/))
  })

  test('dual stack, either family first', async () => {
    using host = new PrivateHost()
    host.conf('10-net.conflist', { cniVersion: '0.4.0', name: 'dual', plugins: [host.bridge(['10.222.72.0/24', 'fd00:10:222:72::/64']), { type: 'portmap', capabilities: { portMappings: true } }] })
    const four = host.manager({ ipPref: 'ipv4' })
    const six = host.manager({ ipPref: 'ipv6' })
    await Promise.all([four.start(), six.start()])
    const pods = [podIn(host.netns(), { portMappings: [{ hostPort: 18081, containerPort: 80, protocol: 'udp' }] }), podIn(host.netns())] as const
    assert.deepEqual((await four.add(pods[0], testSignal())).ips, ['10.222.72.2', 'fd00:10:222:72::2'])
    assert.deepEqual((await six.add(pods[1], testSignal())).ips, ['fd00:10:222:72::3', '10.222.72.3'])
    assert.match(host.run('ip6tables-save', '-t', 'nat'), /--to-destination \[fd00:10:222:72::2\]:80/)
    for (const pod of pods) await four.del(pod, testSignal())
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
    assert.doesNotMatch(host.run('ip6tables-save'), /fd00:10:222:72::2/)
  })

  test('two networks make eth0 and eth1, side by side and one after the other', async () => {
    using host = new PrivateHost()
    host.conf('10-a.conflist', { cniVersion: '1.0.0', name: 'net-a', plugins: [host.bridge(['10.222.73.0/24'])] })
    host.conf('20-b.conf', { cniVersion: '0.3.1', name: 'net-b', ...host.bridge(['10.222.74.0/24']), bridge: 'crishimtest1', isDefaultGateway: false, ipam: { type: 'host-local', dataDir: join(host.dir, 'ipam'), subnet: '10.222.74.0/24' } })
    for (const setupSerially of [true, false]) {
      const manager = host.manager({ maxConfNum: 0, setupSerially })
      await manager.start()
      const pod = podIn(host.netns())
      const network = await manager.add(pod, testSignal())
      assert.equal(network.ips.length, 1)
      assert.match(network.ips[0] ?? '', /^10\.222\.73\./)
      assert.match(network.interfaces.find(({ name }) => name === 'eth1')?.ips[0]?.ip ?? '', /^10\.222\.74\./)
      assert.deepEqual(network.results.map(({ network, ifName }) => [network, ifName]), [['net-a', 'eth0'], ['net-b', 'eth1']])
      assert.deepEqual(host.cached, [`net-a-${pod.id}-eth0`, `net-b-${pod.id}-eth1`])
      await manager.check(pod, testSignal())
      await manager.del(pod, testSignal())
      assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
    }
  })

  test('DEL after a restart uses the configuration and result of the ADD, though the conflist has changed or is gone', async () => {
    using host = new PrivateHost()
    host.plugin('recorder', recorder)
    const file = host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'kept', plugins: [host.bridge(), { type: 'recorder', mark: 'first', capabilities: { portMappings: true } }] })
    const before = host.manager()
    await before.start()
    const pods = [podIn(host.netns(), { portMappings: [{ hostPort: 18082, containerPort: 80, protocol: 'TCP' }] }), podIn(host.netns())] as const
    for (const pod of pods) await before.add(pod, testSignal())
    await before.close()
    const [add] = calls(host)

    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'kept', plugins: [{ type: 'recorder', mark: 'second' }] })
    const changed = host.manager()
    await changed.start()
    await changed.check(pods[0], testSignal())
    await changed.del({ ...pods[0], portMappings: [] }, testSignal())
    const [check, del] = calls(host).slice(2)
    for (const [call, command] of [[check, 'CHECK'], [del, 'DEL']] as const) {
      assert.deepEqual([call?.command, call?.netns, call?.input['mark']], [command, pods[0].netnsPath, 'first'])
      assert.deepEqual(call?.input['runtimeConfig'], { portMappings: [{ hostPort: 18082, containerPort: 80, protocol: 'tcp' }] })
      assert.deepEqual(call?.input['prevResult'], add?.input['prevResult'])
      assert.equal(call?.args, `IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=${pods[0].id};K8S_POD_UID=uid-1`)
    }

    rmSync(file)
    const gone = host.manager()
    await gone.start()
    assert.equal(gone.status().ready, false)
    assert.deepEqual(await gone.listCached(), [{ network: 'kept', containerId: pods[1].id, ifName: 'eth0' }])
    host.removeNetns(pods[1].netnsPath)
    await gone.del(pods[1], testSignal())
    const last = calls(host).at(-1)
    assert.deepEqual([last?.command, last?.netns], ['DEL', ''])
    assert.deepEqual([host.leases, host.cached, await gone.listCached()], [[], [], []])
  })

  test('an exhausted range fails the ADD, says so, and leaves nothing', async () => {
    using host = new PrivateHost()
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'tiny', plugins: [host.bridge(['10.222.75.0/29'], { rangeStart: '10.222.75.3', rangeEnd: '10.222.75.3' })] })
    const manager = host.manager()
    await manager.start()
    const [first, second] = [podIn(host.netns()), podIn(host.netns())]
    await manager.add(first, testSignal())
    await assert.rejects(manager.add(second, testSignal()), failsWith(Code.RESOURCE_EXHAUSTED, /"tiny": plugin bridge failed to ADD for pod default\/web/, /enlarge the range/))
    assert.deepEqual([host.leases, host.veths.length, host.cached], [['10.222.75.3'], 1, [`tiny-${first.id}-eth0`]])
    await manager.del(first, testSignal())
    assert.deepEqual((await manager.add(second, testSignal())).ips, ['10.222.75.3'])
  })

  test('a plugin that fails later in the chain takes everything back, in every network', async () => {
    using host = new PrivateHost()
    host.plugin('failing', `cat > /dev/null; echo "$CNI_COMMAND" >> "$dir/failing-calls"
[ "$CNI_COMMAND" = ADD ] || exit 0; echo oops >&2; echo '{"cniVersion":"1.0.0","code":11,"msg":"the agent is busy","details":"queue 7"}'; exit 1`)
    // One firewall plugin only: two that make its chain at once, in a namespace that has none yet, get in each other's way.
    host.conf('10-a.conflist', { cniVersion: '1.0.0', name: 'fine', plugins: [host.bridge(['10.222.76.0/24'])] })
    host.conf('20-b.conflist', { cniVersion: '1.0.0', name: 'broken', plugins: [{ ...host.bridge(['10.222.77.0/24']), bridge: 'crishimtest1' }, { type: 'firewall' }, { type: 'failing' }] })
    const manager = host.manager({ maxConfNum: 2 })
    await manager.start()
    const pod = podIn(host.netns())
    await assert.rejects(
      manager.add(pod, testSignal()),
      failsWith(Code.UNAVAILABLE, /"broken": plugin failing failed to ADD for pod default\/web: the agent is busy; queue 7 \(CNI error 11\); standard error: "oops"; .*try again later/),
    )
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
    assert.doesNotMatch(host.run('iptables-save'), /10\.222\.7[67]\.\d/)
    assert.equal(host.read('failing-calls'), 'ADD\nDEL\n')
  })

  test('what cannot be taken back stays on record until it can', async () => {
    using host = new PrivateHost()
    host.plugin('stubborn', `cat > /dev/null; [ -e "$dir/healed" ] && exit 0; echo '{"code":999,"msg":"no"}'; exit 1`)
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'stuck', plugins: [host.bridge(), { type: 'stubborn' }] })
    const manager = host.manager()
    await manager.start()
    const pod = podIn(host.netns())
    await assert.rejects(manager.add(pod, testSignal()), (error: unknown) => {
      failsWith(Code.INTERNAL, /failed to ADD .*: no .*taking it back failed too.*stubborn DEL/)(error)
      return error instanceof CriError && error.reason === 'CNI_ADD_NOT_UNDONE'
    })
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], [`stuck-${pod.id}-eth0`]], 'the other plugins were undone')
    await assert.rejects(manager.del(pod, testSignal()), failsWith(Code.INTERNAL, /stubborn failed to DEL/))
    mkdirSync(join(host.dir, 'healed'))
    await manager.delCached(pod.id)
    assert.deepEqual(host.cached, [])
  })

  test('a plugin that hangs is killed with all its children at the abort and at the deadline, and the ADD undone', async () => {
    using host = new PrivateHost()
    host.plugin('hanging', `cat > /dev/null; [ "$CNI_COMMAND" = ADD ] || exit 0; sleep 1000 & echo $! > "$dir/child.tmp"; mv "$dir/child.tmp" "$dir/child"; wait`)
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'slow', plugins: [host.bridge(), { type: 'hanging' }] })
    const child = join(host.dir, 'child')
    const assertDead = (): void => {
      const pid = Number(readFileSync(child, 'utf8'))
      // The orphan's reaper may be slow: a zombie is dead.
      const stat = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : ' Z '
      assert.match(stat, / Z /)
      rmSync(child)
    }
    const manager = host.manager()
    await manager.start()
    const abort = new AbortController()
    const added = manager.add(podIn(host.netns()), abort.signal)
    const rejected = assert.rejects(added, failsWith(Code.CANCELLED, /hanging ADD of network "slow" for pod default\/web was stopped: the client is gone/))
    await fileExists(child)
    abort.abort(new Error('the client is gone'))
    await rejected
    assertDead()
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])

    const impatient = host.manager({ execTimeoutMs: 2000 })
    await impatient.start()
    await assert.rejects(impatient.add(podIn(host.netns()), testSignal()), failsWith(Code.DEADLINE_EXCEEDED, /hanging ADD of network "slow" .* did not end within 2 s and was killed/))
    assertDead()
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
  })

  test('after kill -9 in the middle of an ADD the next process finds the record, ends the plugin and releases the address', async () => {
    using host = new PrivateHost()
    host.plugin('hanging', `cat > /dev/null; [ "$CNI_COMMAND" = ADD ] || exit 0; sleep 1000 & echo $! > "$dir/child.tmp"; mv "$dir/child.tmp" "$dir/child"; wait`)
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'crash', plugins: [host.bridge(), { type: 'firewall' }, { type: 'hanging' }] })
    const pod = podIn(host.netns())
    const script = `
      import { CniManager } from ${JSON.stringify(join(import.meta.dirname, 'manager.ts'))}
      import { createLogger } from ${JSON.stringify(join(import.meta.dirname, '../observability/logger.ts'))}
      const manager = new CniManager({ confDir: ${JSON.stringify(host.confDir)}, binDirs: [${JSON.stringify(host.binDir)}], maxConfNum: 1, cacheDir: ${JSON.stringify(host.cacheDir)}, log: createLogger('fatal') })
      await manager.start()
      await manager.add(${JSON.stringify(pod)}, AbortSignal.timeout(60000))`
    const process_ = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'ignore' })
    await fileExists(join(host.dir, 'child'))
    process_.kill('SIGKILL')
    await once(process_, 'exit')
    assert.deepEqual(host.leases, ['10.222.71.2'])

    const manager = host.manager()
    await manager.start()
    assert.deepEqual(await manager.listCached(), [{ network: 'crash', containerId: pod.id, ifName: 'eth0' }])
    await manager.delCached(pod.id)
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
    assert.doesNotMatch(host.run('iptables-save'), /10\.222\.71\.2\//, 'the firewall plugin got the result that was reached')
    const pid = host.read('child').trim()
    assert.ok(!existsSync(`/proc/${pid}`) || / Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8')))
  })

  test('a missing binary: ADD fails before anything is made, DEL fails and can be repeated', async () => {
    using host = new PrivateHost()
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'lacking', plugins: [host.bridge(), { type: 'firewall' }] })
    const manager = host.manager()
    await manager.start()
    const pod = podIn(host.netns())
    await manager.add(pod, testSignal())
    const firewall = readFileSync(join(host.binDir, 'firewall'), 'utf8').split('\n').slice(2).join('\n')
    rmSync(join(host.binDir, 'firewall'))
    const missing = new RegExp(`plugin binary firewall not found in ${host.binDir}: install`)
    assert.deepEqual([manager.status().ready, manager.status().reason], [false, 'CNIPluginMissing'])
    assert.match(manager.status().message, missing)
    assert.equal(manager.status().networks[0]?.plugins[0]?.found, join(host.binDir, 'bridge'))
    await assert.rejects(manager.del(pod, testSignal()), failsWith(Code.FAILED_PRECONDITION, missing))
    assert.deepEqual([host.leases, host.cached], [['10.222.71.2'], [`lacking-${pod.id}-eth0`]], 'the address is not given back while rules for it remain')
    const other = podIn(host.netns())
    await assert.rejects(manager.add(other, testSignal()), failsWith(Code.FAILED_PRECONDITION, missing))
    assert.deepEqual(host.leases, ['10.222.71.2'])
    await manager.del(other, testSignal())
    host.plugin('firewall', firewall)
    await manager.del(pod, testSignal())
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
  })

  test('a record that a power failure cut short is released by its name', async () => {
    using host = new PrivateHost()
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'cut-short', plugins: [host.bridge()] })
    const manager = host.manager()
    await manager.start()
    const pod = podIn(host.netns())
    await manager.add(pod, testSignal())
    writeFileSync(join(host.cacheDir, 'results', host.cached[0] ?? ''), '')
    assert.deepEqual(await manager.listCached(), [{ network: 'cut-short', containerId: pod.id, ifName: 'eth0' }])
    await manager.delCached(pod.id)
    assert.deepEqual([host.leases, host.cached], [[], []])
  })

  test('many pods at once, few plugins at once', async () => {
    using host = new PrivateHost()
    host.plugin('counting', `input=$(cat); mkdir "$dir/running-$$"; ls -d "$dir"/running-* | wc -l >> "$dir/counts"; rmdir "$dir/running-$$"
[ "$CNI_COMMAND" = ADD ] && printf '%s' "$input" | sed 's/.*"prevResult":\\(.*\\)}$/\\1/'; exit 0`)
    host.conf('10-net.conflist', { cniVersion: '1.0.0', name: 'busy', plugins: [host.bridge(), { type: 'counting' }] })
    const manager = host.manager({ concurrency: 2 })
    await manager.start()
    const pods = Array.from({ length: 8 }, () => podIn(host.netns()))
    const networks = await Promise.all(pods.map((pod) => manager.add(pod, testSignal())))
    assert.equal(new Set(networks.flatMap(({ ips }) => ips)).size, 8)
    assert.ok(host.read('counts').trim().split(/\s+/).every((count) => Number(count) <= 2))
    await Promise.all(pods.map((pod) => manager.del(pod, testSignal())))
    assert.deepEqual([host.leases, host.veths, host.cached], [[], [], []])
    assert.deepEqual([manager.queue.running, manager.queue.waiting, readdirSync(host.dir).filter((name) => name.startsWith('running-'))], [0, 0, []])
  })
})
