// cri-shim as a systemd unit on a Debian node that is really booted, with containers in scopes that systemd manages.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { access, appendFile, mkdir, mkdtemp, readFile, readdir, readlink, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { type TestContext, after, before, test } from 'node:test'
import { ContainerState, CgroupDriver, PodSandboxState } from '../../src/generated/cri.ts'
import { output } from '../fixtures/command.ts'
import { type CriClient, connectCri } from '../fixtures/cri-client.ts'
import { busyboxImage, sandboxImage } from '../images/catalog.ts'
import { type Machine, bootMachine } from './machine.ts'
import { unpackDebian } from './rootfs.ts'

const socket = '/run/cri-shim/cri-shim.sock'

/** A node's /etc/containerd/config.toml as containerd 1.x has it, for a kubelet with cgroupDriver: systemd. */
const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${sandboxImage}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
`

const conflist = JSON.stringify({
  cniVersion: '0.4.0',
  name: 'pods',
  plugins: [
    { type: 'bridge', bridge: 'cni0', isGateway: true, ipMasq: true, ipam: { type: 'host-local', ranges: [[{ subnet: '10.88.0.0/16' }]], routes: [{ dst: '0.0.0.0/0' }] } },
    { type: 'portmap', capabilities: { portMappings: true } },
  ],
})

/** The images that pods need, from a registry inside the machine: nothing leaves it. */
const registryUnit = `[Service]
ExecStart=/usr/local/lib/cri-shim/current/node_modules/node-linux-${process.arch}/bin/node /root/checkout/test/fixtures/registry/serve.ts /var/lib/test-images 5000 /etc/containerd/certs.d
[Install]
WantedBy=multi-user.target
`

let dir = ''
let root = ''
/** A copy of this checkout inside the machine: what is installed does not change while the test runs. */
let checkout = ''
let machine: Machine
let cri: CriClient

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'cri-shim-systemd-'))
  root = join(dir, 'root')
  await unpackDebian(root)
  checkout = join(root, 'root/checkout')
  await mkdir(checkout)
  await output('/bin/sh', ['-ec', 'tar -cf - --exclude=./.git --exclude=./node_modules/node-linux-*/include -C "$1" . | tar -xf - -C "$2"', 'sh', join(import.meta.dirname, '../..'), checkout])
  for (const [path, text] of [
    ['etc/containerd/config.toml', containerdConfig],
    ['etc/cni/net.d/10-pods.conflist', conflist],
    ['etc/systemd/system/registry.service', registryUnit],
    ['etc/hostname', 'node\n'],
  ] as const) {
    await mkdir(dirname(join(root, path)), { recursive: true })
    await writeFile(join(root, path), text)
  }
})

after(async () => {
  cri?.close()
  await machine?.[Symbol.asyncDispose]()
  await rm(dir, { recursive: true, force: true })
})

const boot = async (): Promise<void> => {
  machine = await bootMachine(root)
  cri = connectCri(machine.path(socket))
}

const property = async (unit: string, name: string): Promise<string> => (await machine.run('systemctl', 'show', '--value', `--property=${name}`, unit)).trim()
const mainPid = async (): Promise<string> => property('cri-shim', 'MainPID')
/** Does something to the service and waits until it says that it is ready again. */
const untilReadyAfter = async (work: () => Promise<unknown>, message = /cri-shim is ready/): Promise<void> => {
  const cursor = await machine.journalCursor()
  await work()
  await machine.untilLogged('cri-shim', message, cursor)
}

const podUid = randomUUID()
const podSlice = `kubepods-besteffort-pod${podUid.replaceAll('-', '_')}.slice`
const sandboxConfig = {
  metadata: { name: 'web', uid: podUid, namespace: 'default', attempt: 0 },
  hostname: 'web',
  log_directory: '/var/log/pods/web',
  linux: { cgroup_parent: `/kubepods.slice/kubepods-besteffort.slice/${podSlice}` },
}
let pod = ''
let container = ''
/** Of the container's first process, in the machine's namespace. */
let containerPid = ''

async function start(
  name: string, script: string, resources: { readonly memory_limit_in_bytes?: string; readonly cpu_shares?: string } = {}, within = { id: pod, config: sandboxConfig },
): Promise<string> {
  const config = { metadata: { name, attempt: 0 }, image: { image: busyboxImage }, command: ['sh', '-c', script], log_path: `${name}.log`, linux: { resources } }
  const { container_id: id } = await cri.runtime.CreateContainer({ pod_sandbox_id: within.id, sandbox_config: within.config, config })
  await cri.runtime.StartContainer({ container_id: id })
  return id
}

async function pidOf(id: string): Promise<string> {
  const line = (await machine.run('ctr', '--namespace=k8s.io', 'tasks', 'ls')).split('\n').find((task) => task.startsWith(id))
  const [, pid = '', state] = (line ?? '').split(/\s+/)
  assert.equal(state, 'RUNNING', `the task of ${id}`)
  return pid
}

/** The same process as at the start, and the service knows it. */
async function assertUndisturbed(): Promise<void> {
  assert.equal(await pidOf(container), containerPid)
  const { status } = await cri.runtime.ContainerStatus({ container_id: container })
  assert.equal(status?.state, ContainerState.CONTAINER_RUNNING)
  const { status: sandbox } = await cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
  assert.equal(sandbox?.state, PodSandboxState.SANDBOX_READY)
  const { exit_code: code, stdout } = await cri.runtime.ExecSync({ container_id: container, cmd: ['cat', '/started'], timeout: '10' })
  assert.deepEqual([code, Buffer.from(stdout).toString()], [0, 'once\n'])
}

const ready = async (): Promise<void> => {
  const { status } = await cri.runtime.Status({})
  assert.deepEqual(status?.conditions.map(({ type, status: met, message }) => [type, met, message]), [['RuntimeReady', true, ''], ['NetworkReady', true, '']])
}

test('a node: installed, booted, restarted, upgraded, powered off', async (t: TestContext) => {
  // Each step stands on the one before.
  const step = async (name: string, work: () => Promise<void>): Promise<void> => {
    let failure: unknown
    await t.test(name, async () => work().catch((error: unknown) => {
      failure = error
      throw error
    }))
    if (failure !== undefined) throw new Error(`the steps after "${name}" are left out`, { cause: failure })
  }

  await step('make install into a directory, twice', async () => {
    const install = async (): Promise<string> => output('make', ['--silent', '-C', checkout, 'install', `DESTDIR=${root}`], { env: { ...process.env, MAKEFLAGS: '' } })
    const said = await install()
    assert.match(said, /which imports \/etc\/containerd\/config\.toml/)
    const config = join(root, 'etc/cri-shim/config.toml')
    assert.match(await readFile(config, 'utf8'), /^imports = \["\/etc\/containerd\/config\.toml"\]$/m)
    await appendFile(config, '\n# mine\n')
    assert.match(await install(), /^kept +.*\/etc\/cri-shim\/config\.toml$/m)
    assert.match(await readFile(config, 'utf8'), /\n# mine\n$/)
    assert.equal((await readdir(join(root, 'usr/local/lib/cri-shim/releases'))).length, 1)
    const installed = await readdir(join(root, 'usr/local/lib/cri-shim/current/node_modules'))
    assert.ok(!installed.includes('typescript') && installed.includes('koffi'), installed.join(' '))
  })

  await step('enable and start', async () => {
    await boot()
    await machine.run('systemd-analyze', 'verify', '--man=no', 'cri-shim.service')
    const { code, stdout } = await machine.try('cri-shim', 'config', 'check')
    assert.equal(code, 0, stdout)
    const cursor = await machine.journalCursor()
    await machine.run('systemctl', 'start', 'registry')
    await machine.untilLogged('registry', /serving \d+ image names/, cursor)
    await machine.run('systemctl', 'enable', '--now', 'cri-shim')
    assert.equal(await property('cri-shim', 'ActiveState'), 'active')
    assert.equal(await property('cri-shim', 'StatusText'), `serving on unix://${socket}`)
    await ready()
  })

  await step('the kubelet is told of the systemd driver', async () => {
    const { linux } = await cri.runtime.RuntimeConfig({})
    assert.equal(linux?.cgroup_driver, CgroupDriver.SYSTEMD)
  })

  await step('a pod in scopes below the slice that the kubelet named', async () => {
    await cri.image.PullImage({ image: { image: busyboxImage } })
    pod = (await cri.runtime.RunPodSandbox({ config: sandboxConfig })).pod_sandbox_id
    container = await start('app', 'trap "exit 0" TERM; echo once >> /started; n=0; while :; do echo $((n++)); sleep 0.2 & wait $!; done', { memory_limit_in_bytes: String(64 << 20) })
    containerPid = await pidOf(container)
    const slice = `/kubepods.slice/kubepods-besteffort.slice/${podSlice}`
    for (const id of [pod, container]) {
      const scope = `cri-containerd-${id}.scope`
      assert.equal(await property(scope, 'ActiveState'), 'active')
      assert.equal(await property(scope, 'ControlGroup'), `${slice}/${scope}`)
    }
    // By what the kernel says of the process, not only by what systemd says of the unit.
    const cgroups = await machine.run('cat', `/proc/${containerPid}/cgroup`)
    assert.match(cgroups, new RegExp(`^\\d+:name=systemd:${slice}/cri-containerd-${container}\\.scope$`, 'm'))
    const memory = /^\d+:memory:(.*)$/m.exec(cgroups)?.[1]
    if (memory !== undefined) assert.equal((await machine.run('cat', `/sys/fs/cgroup/memory${memory}/memory.limit_in_bytes`)).trim(), String(64 << 20))
    const { stats } = await cri.runtime.ContainerStats({ container_id: container })
    assert.ok(Number(stats?.memory?.working_set_bytes?.value) > 0, 'the memory of a container in a scope is measured')
    await assertUndisturbed()
  })

  await step('a burstable pod in systemd\'s tree: limits, an update that systemd keeps, an out-of-memory kill whose scope goes, and nothing after the removal', async () => {
    const uid = randomUUID()
    const slice = `kubepods-burstable-pod${uid.replaceAll('-', '_')}.slice`
    const config = {
      ...sandboxConfig, metadata: { ...sandboxConfig.metadata, name: 'burstable', uid }, hostname: 'burstable', log_directory: '/var/log/pods/burstable',
      linux: { cgroup_parent: `/kubepods.slice/kubepods-burstable.slice/${slice}` },
    }
    const { pod_sandbox_id: id } = await cri.runtime.RunPodSandbox({ config })
    const within = { id, config }
    const limited = await start('limited', 'trap "exit 0" TERM; sleep 1000 & wait $!', { memory_limit_in_bytes: String(64 << 20), cpu_shares: '512' }, within)
    const scope = (of: string): string => `cri-containerd-${of}.scope`
    const tree = await machine.run('systemd-cgls', '--no-pager', '--full', '/kubepods.slice')
    const [before = '', below = ''] = tree.split(slice)
    assert.match(before, /kubepods-burstable\.slice/)
    for (const each of [id, limited]) assert.ok(below.includes(scope(each)), `${scope(each)} is not below ${slice}:\n${tree}`)

    const kernel = async (of: string, controller: string, file: string): Promise<string> => {
      const path = new RegExp(`^\\d+:(?:[^:]*,)?${controller}(?:,[^:]*)?:(.*)$`, 'm').exec(await machine.run('cat', `/proc/${await pidOf(of)}/cgroup`))?.[1] ?? ''
      assert.equal(path, `/kubepods.slice/kubepods-burstable.slice/${slice}/${scope(of)}`, controller)
      return (await machine.run('cat', `/sys/fs/cgroup/${controller}${path}/${file}`)).trim()
    }
    const shown = async (): Promise<readonly (string | undefined)[]> => {
      const { status } = await cri.runtime.ContainerStatus({ container_id: limited })
      return [status?.resources?.linux?.cpu_shares, status?.resources?.linux?.memory_limit_in_bytes]
    }
    assert.deepEqual([await kernel(limited, 'cpu', 'cpu.shares'), await kernel(limited, 'memory', 'memory.limit_in_bytes')], ['512', String(64 << 20)])
    await cri.runtime.UpdateContainerResources({ container_id: limited, linux: { cpu_shares: '300', memory_limit_in_bytes: String(96 << 20) } })
    // systemd writes its own idea of a unit's limits on a reload: it must have been told.
    await machine.run('systemctl', 'daemon-reload')
    assert.deepEqual([await kernel(limited, 'cpu', 'cpu.shares'), await kernel(limited, 'memory', 'memory.limit_in_bytes')], ['300', String(96 << 20)])
    assert.deepEqual(await shown(), ['300', String(96 << 20)])
    const { stats } = await cri.runtime.ContainerStats({ container_id: limited })
    assert.ok(Number(stats?.memory?.working_set_bytes?.value) > 0 && Number(stats?.cpu?.usage_core_nano_seconds?.value) > 0)

    const killed = await start('killed', 'exec tail /dev/zero', { memory_limit_in_bytes: String(16 << 20) }, within)
    const deadline = Date.now() + 60_000
    let status = (await cri.runtime.ContainerStatus({ container_id: killed })).status
    while (status?.state !== ContainerState.CONTAINER_EXITED) {
      assert.ok(Date.now() < deadline, 'the container was not killed')
      await new Promise((resolve) => { setTimeout(resolve, 50) })
      status = (await cri.runtime.ContainerStatus({ container_id: killed })).status
    }
    assert.deepEqual([status.exit_code, status.reason], [137, 'OOMKilled'])
    assert.doesNotMatch(await machine.run('systemctl', 'list-units', '--all', '--plain', '--no-legend', scope(killed)), /cri-containerd/)
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: id })
    await cri.runtime.RemovePodSandbox({ pod_sandbox_id: id })
    for (const each of [id, limited, killed]) {
      assert.doesNotMatch(await machine.run('systemctl', 'list-units', '--all', '--plain', '--no-legend', scope(each)), /cri-containerd/)
      assert.equal((await machine.run('find', '/sys/fs/cgroup', '-name', scope(each))).trim(), '')
    }
    assert.doesNotMatch(await machine.run('systemd-cgls', '--no-pager', '--full', '/'), new RegExp(`${id}|${limited}|${killed}`))
    await assertUndisturbed()
  })

  await step('restart of the unit: the pod runs on', async () => {
    const first = await mainPid()
    await machine.run('systemctl', 'restart', 'cri-shim')
    assert.notEqual(await mainPid(), first)
    await ready()
    await assertUndisturbed()
  })

  let ended = ''
  await step('stop of the unit: pods run on, and what exits meanwhile keeps its exit code', async () => {
    ended = await start('short', 'while [ ! -e /dev/shm/end ]; do sleep 0.1; done; exit 7')
    const shortPid = await pidOf(ended)
    await machine.run('systemctl', 'stop', 'cri-shim')
    assert.equal(await property('cri-shim', 'Result'), 'success')
    assert.equal(await pidOf(container), containerPid)
    await machine.run('touch', `/proc/${shortPid}/root/dev/shm/end`)
    await machine.run('tail', '-f', '/dev/null', `--pid=${shortPid}`)
    await machine.run('systemctl', 'start', 'cri-shim')
    await assertUndisturbed()
    const { status } = await cri.runtime.ContainerStatus({ container_id: ended })
    assert.deepEqual([status?.state, status?.exit_code, status?.reason], [ContainerState.CONTAINER_EXITED, 7, 'Error'])
  })

  await step('kill -9, and a process that hangs: systemd starts it again', async () => {
    await untilReadyAfter(async () => machine.run('systemctl', 'kill', '--signal=KILL', '--kill-whom=main', 'cri-shim'))
    assert.equal(await property('cri-shim', 'NRestarts'), '1')
    await assertUndisturbed()
    // A watchdog of a moment for the test, put in place while the service runs, to be in force from the next start.
    const dropIn = machine.path('/run/systemd/system/cri-shim.service.d')
    await mkdir(dropIn, { recursive: true })
    await writeFile(join(dropIn, 'watchdog.conf'), '[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n')
    await machine.run('systemctl', 'daemon-reload')
    await machine.run('systemctl', 'restart', 'cri-shim')
    const cursor = await machine.journalCursor()
    await untilReadyAfter(async () => machine.run('systemctl', 'kill', '--signal=STOP', '--kill-whom=main', 'cri-shim'))
    assert.match(await machine.run('journalctl', '--unit=cri-shim', '--output=cat', `--after-cursor=${cursor}`), /Watchdog timeout/)
    await rm(dropIn, { recursive: true })
    await machine.run('systemctl', 'daemon-reload')
    await machine.run('systemctl', 'restart', 'cri-shim')
    await assertUndisturbed()
  })

  await step('restart of containerd: the unit stays, the pod runs on', async () => {
    const before = await mainPid()
    await untilReadyAfter(async () => machine.run('systemctl', 'restart', 'containerd'), /ready: following containerd/)
    await ready()
    assert.equal(await mainPid(), before)
    await assertUndisturbed()
  })

  await step('an upgrade on the node: the running service keeps its release until it is restarted', async () => {
    const before = await mainPid()
    const release = await readlink(join(root, 'usr/local/lib/cri-shim/current'))
    await appendFile(join(checkout, 'src/cli/version-info.ts'), '// changed\n')
    const said = await machine.run('/root/checkout/scripts/install.sh')
    assert.match(said, /the service still runs .*; now: systemctl restart cri-shim/)
    assert.notEqual(await readlink(join(root, 'usr/local/lib/cri-shim/current')), release)
    assert.equal((await readdir(join(root, 'usr/local/lib/cri-shim/releases'))).length, 2)
    assert.equal((await readdir(join(root, 'var/cache/cri-shim'))).length, 2)
    assert.equal(await mainPid(), before)
    await machine.run('systemctl', 'restart', 'cri-shim')
    const exe = (await machine.run('readlink', `/proc/${await mainPid()}/exe`)).trim()
    assert.ok(exe.startsWith(`/usr/local/lib/cri-shim/${await readlink(join(root, 'usr/local/lib/cri-shim/current'))}/`), exe)
    await assertUndisturbed()
  })

  await step('log level by SIGUSR1, metrics', async () => {
    const cursor = await machine.journalCursor()
    await machine.run('systemctl', 'kill', '--signal=USR1', '--kill-whom=main', 'cri-shim')
    await machine.untilLogged('cri-shim', /log level changed by SIGUSR1/, cursor)
    assert.match(await machine.run('busybox', 'wget', '-qO-', 'http://127.0.0.1:10270/metrics'), /cri_shim_/)
    assert.equal((await machine.run('busybox', 'wget', '-qO-', 'http://127.0.0.1:10270/readyz')).trim(), 'ok')
  })

  await step('power off and on: the unit comes up by itself and knows that the pod has ended', async () => {
    cri.close()
    await machine.poweroff()
    await machine[Symbol.asyncDispose]()
    await boot()
    assert.equal(await property('cri-shim', 'ActiveState'), 'active')
    await ready()
    const { status: sandbox } = await cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
    assert.equal(sandbox?.state, PodSandboxState.SANDBOX_NOTREADY)
    const { containers } = await cri.runtime.ListContainers({})
    assert.deepEqual(new Map(containers.map(({ id, state }) => [id, state])), new Map([container, ended].map((id) => [id, ContainerState.CONTAINER_EXITED])))
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    await cri.runtime.RemovePodSandbox({ pod_sandbox_id: pod })
    assert.equal((await machine.run('ctr', '--namespace=k8s.io', 'containers', 'ls', '--quiet')).trim(), '')
    assert.deepEqual((await readdir(machine.path('/var/lib/cni/networks/pods'))).filter((name) => name.startsWith('10.')), [])
  })

  await step('a pod on the second boot; stop and removal leave no unit', async () => {
    pod = (await cri.runtime.RunPodSandbox({ config: { ...sandboxConfig, metadata: { ...sandboxConfig.metadata, attempt: 1 } } })).pod_sandbox_id
    container = await start('again', 'sleep 1000')
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    await cri.runtime.RemovePodSandbox({ pod_sandbox_id: pod })
    assert.doesNotMatch(await machine.run('systemctl', 'list-units', '--all', '--plain', '--no-legend', '--type=scope'), /cri-containerd/)
  })

  await step('uninstall on the node leaves configuration and data', async () => {
    const said = await machine.run('/root/checkout/scripts/install.sh', '--uninstall')
    assert.match(said, /^kept +\/etc\/cri-shim\/config\.toml and/m)
    for (const path of ['usr/local/lib/cri-shim', 'usr/local/bin/cri-shim', 'usr/local/lib/systemd/system/cri-shim.service']) await assert.rejects(access(join(root, path)), path)
    assert.match(await readFile(join(root, 'etc/cri-shim/config.toml'), 'utf8'), /\n# mine\n$/)
    await access(join(root, 'var/lib/cri-shim'))
    assert.equal((await machine.try('systemctl', 'is-active', 'cri-shim')).stdout.trim(), 'inactive')
  })

  await step('power off', async () => {
    cri.close()
    await machine.poweroff()
  })
})
