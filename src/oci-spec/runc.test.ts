import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdir, mkdtemp, readFile, readdir, rm, rmdir, symlink, writeFile } from 'node:fs/promises'
import { readFileSync, statfsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'
import { SecurityProfile_ProfileType as Type } from '../generated/cri.ts'
import { containerSpec } from './container-spec.ts'
import type { Changes } from './spec-fixtures.ts'
import { imageConfigOf } from './image-config.ts'
import type { ContainerSpecInput, HostFacts } from './input.ts'
import { stringifyOciJson } from './json.ts'
import { execProcess } from './process.ts'
import { sandboxSpec } from './sandbox-spec.ts'
import { containerInput, sandboxInput } from './spec-fixtures.ts'
import type { OciSpec } from './types.ts'

const run = promisify(execFile)

function reasonToSkip(): string | false {
  if (process.getuid?.() !== 0) return 'needs root'
  if (spawnSync('runc', ['--version']).status !== 0) return 'needs runc'
  return spawnSync('busybox', ['--help']).status === 0 ? false : 'needs busybox-static'
}

/** What this machine really is like, as far as a spec depends on it. */
function realFacts(): Partial<HostFacts> {
  const status = readFileSync('/proc/self/status', 'utf8')
  return {
    arch: process.arch === 'x64' ? 'amd64' : process.arch,
    cgroupMode: statfsSync('/sys/fs/cgroup').type === 0x63677270 ? 'unified' : 'legacy',
    effectiveCapabilities: BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1]}`),
    capLastCap: Number(readFileSync('/proc/sys/kernel/cap_last_cap', 'utf8')),
    ownOomScoreAdj: Number(readFileSync('/proc/self/oom_score_adj', 'utf8')),
    apparmorEnabled: false,
    hostDevices: [{ path: '/dev/full2', type: 'c', major: 1, minor: 7, fileMode: 0o666, uid: 0, gid: 0, permissions: 'rwm' }],
  }
}

describe('runc and the kernel accept the specs', { skip: reasonToSkip() }, () => {
  const facts = realFacts()
  let dir: string
  let network: ChildProcess
  let sandboxPid: number
  let pod: Changes
  const made: string[] = []
  const cgroupParent = `/oci-spec-test-${process.pid}`

  const runc = (...args: string[]) => run('runc', ['--root', join(dir, 'state'), ...args], { encoding: 'utf8' })

  async function bundle(id: string, spec: OciSpec): Promise<string> {
    const path = join(dir, id)
    await mkdir(join(path, 'rootfs/bin'), { recursive: true })
    await mkdir(join(path, 'rootfs/etc'))
    await copyFile('/bin/busybox', join(path, 'rootfs/bin/busybox'))
    await symlink('busybox', join(path, 'rootfs/bin/sh'))
    await writeFile(join(path, 'config.json'), stringifyOciJson(spec))
    made.push(id)
    return path
  }

  /** Creates and starts a container whose output goes nowhere. */
  async function start(id: string, spec: OciSpec): Promise<number> {
    const path = await bundle(id, spec)
    // Not run(): the container would keep the pipes of its creator open.
    const child = spawn('runc', ['--root', join(dir, 'state'), '--log', join(path, 'log'), 'create', '--bundle', path, '--pid-file', join(path, 'pid'), id], { stdio: 'ignore' })
    const [code] = (await once(child, 'exit')) as [number]
    assert.equal(code, 0, await readFile(join(path, 'log'), 'utf8').catch(() => ''))
    await runc('start', id)
    return Number(await readFile(join(path, 'pid'), 'utf8'))
  }

  const containerOf = (id: string, { config = {}, ...changes }: Changes, overrides: Partial<ContainerSpecInput> = {}): OciSpec => containerSpec(containerInput(
    { ...pod, ...changes, config: { command: ['/bin/sh', '-c'], ...config }, facts },
    { containerId: id, sandboxPid, netnsPath: `/proc/${network.pid}/ns/net`, imageConfig: imageConfigOf({ Env: ['PATH=/bin'] }), ...overrides },
  ))

  async function outputOf(id: string, spec: OciSpec): Promise<string> {
    return (await runc('run', '--bundle', await bundle(id, spec), id)).stdout
  }

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'oci-spec-'))
    network = spawn('unshare', ['--net', '/bin/busybox', 'sh', '-c', 'echo ready; exec /bin/busybox sleep 600'], { stdio: ['ignore', 'pipe', 'inherit'] })
    if (network.stdout !== null) await once(network.stdout, 'data')
    await mkdir(join(dir, 'shm'))
    await writeFile(join(dir, 'resolv.conf'), 'nameserver 192.0.2.1\n')
    // cgroups of its own, so that nothing else on the machine is touched.
    pod = { pod: { hostname: 'web-0', linux: { cgroup_parent: cgroupParent, sysctls: { 'net.ipv4.ip_forward': '1', 'kernel.shm_rmid_forced': '1' }, security_context: { privileged: true } } } }
    sandboxPid = await start(`pause-${process.pid}`, sandboxSpec(sandboxInput(
      { ...pod, facts, settings: { enableUnprivilegedPorts: true } },
      {
        sandboxId: `pause-${process.pid}`, netnsPath: `/proc/${network.pid}/ns/net`, shmPath: join(dir, 'shm'), resolvConfPath: join(dir, 'resolv.conf'),
        imageConfig: imageConfigOf({ Entrypoint: ['/bin/busybox', 'sleep', '600'] }),
      },
    )))
  })

  after(async () => {
    for (const id of made.toReversed()) await runc('delete', '--force', id).catch(() => undefined)
    network.kill('SIGKILL')
    if (network.exitCode === null && network.signalCode === null) await once(network, 'exit')
    // The runtime removes a container's cgroups, not the parent that it made for them.
    const hierarchies = facts.cgroupMode === 'unified' ? ['/sys/fs/cgroup'] : (await readdir('/sys/fs/cgroup')).map((name) => `/sys/fs/cgroup/${name}`)
    for (const hierarchy of hierarchies) await rmdir(hierarchy + cgroupParent).catch(() => undefined)
    await rm(dir, { recursive: true, force: true })
  })

  test('the pause container runs, unprivileged, with its hostname and sysctls', async () => {
    const status = await readFile(`/proc/${sandboxPid}/status`, 'utf8')
    assert.match(status, /^Uid:\t65535\t65535/m)
    assert.match(status, /^NoNewPrivs:\t1$/m)
    const id = `sysctl-${process.pid}`
    const output = await outputOf(id, containerOf(id, { config: { args: ['busybox hostname; cat() { busybox cat "$@"; }; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_unprivileged_port_start'] } }))
    assert.deepEqual(output.trim().split('\n'), ['web-0', '1', '0'])
    assert.equal(await readFile(`/proc/${sandboxPid}/oom_score_adj`, 'utf8').then(Number), sandboxOom())
  })

  test('a container has the user, groups, environment, capabilities, seccomp filter and mounts of its request', async () => {
    await mkdir(join(dir, 'volume'))
    await writeFile(join(dir, 'volume/file'), 'in the volume')
    const id = `app-${process.pid}`
    const script = [
      'busybox id', 'busybox pwd', 'echo $GREETING $HOSTNAME', 'busybox grep -E "^(CapBnd|CapEff|CapInh|NoNewPrivs|Seccomp):" /proc/self/status | busybox tr "\\t" " "', 'busybox cat /data/file; echo',
      'busybox touch /data/new 2>/dev/null || echo volume read-only', 'busybox touch /new 2>/dev/null || echo root read-only', 'busybox cat /proc/keys | busybox wc -c',
      'busybox unshare -n busybox true 2>/dev/null || echo unshare refused', 'echo x > /dev/null && echo null writable', 'busybox cat /etc/resolv.conf', 'busybox cat /proc/self/oom_score_adj',
    ].join('\n')
    const spec = containerOf(id, {
      config: {
        args: [script], working_dir: '/data', envs: [{ key: 'GREETING', value: Buffer.from('grüß Gott') }],
        linux: {
          resources: { oom_score_adj: '900' },
          security_context: {
            readonly_rootfs: true, no_new_privs: true, masked_paths: ['/proc/keys'], readonly_paths: ['/proc/sys'],
            capabilities: { add_capabilities: ['NET_ADMIN'], drop_capabilities: ['ALL'] }, seccomp: { profile_type: Type.RuntimeDefault },
          },
        },
      },
    }, {
      user: { uid: 1000, gid: 1001, additionalGids: [1001, 2000] },
      mounts: [
        { origin: 'cri', containerPath: '/data', hostPath: join(dir, 'volume'), readonly: true },
        { origin: 'host', containerPath: '/etc/resolv.conf', hostPath: join(dir, 'resolv.conf'), readonly: true },
        { origin: 'host', containerPath: '/dev/shm', hostPath: join(dir, 'shm'), readonly: false },
      ],
    })
    assert.deepEqual((await outputOf(id, spec)).trim().split('\n'), [
      'uid=1000 gid=1001 groups=1001,2000', '/data', 'grüß Gott web-0', 'CapInh: 0000000000000000', 'CapEff: 0000000000000000', 'CapBnd: 0000000000001000', 'NoNewPrivs: 1', 'Seccomp: 2',
      'in the volume', 'volume read-only', 'root read-only', '0', 'unshare refused', 'null writable', 'nameserver 192.0.2.1', '900',
    ])
  })

  test('cgroup limits hold; PID namespaces of the pod, of its own and of a target; an exec joins them all', async () => {
    const id = `long-${process.pid}`
    const resources = { memory_limit_in_bytes: '67108864', cpu_quota: '50000', cpu_period: '100000' }
    const spec = containerOf(id, { config: { args: ['exec busybox sleep 600'], linux: { resources, security_context: { namespace_options: { pid: 1 } } } } })
    const pid = await start(id, spec)
    const cgroup = `${cgroupParent}/${id}`
    const limit = facts.cgroupMode === 'unified' ? `/sys/fs/cgroup${cgroup}/memory.max` : `/sys/fs/cgroup/memory${cgroup}/memory.limit_in_bytes`
    assert.equal((await readFile(limit, 'utf8')).trim(), '67108864')
    await writeFile(join(dir, 'exec.json'), stringifyOciJson(execProcess(spec, { cmd: ['/bin/busybox', 'cat', '/proc/1/cmdline'], tty: false })))
    assert.equal((await runc('exec', '--process', join(dir, 'exec.json'), id)).stdout, 'busybox\0sleep\x00600\0')
    const target = `target-${process.pid}`
    const joined = containerOf(target, { config: { args: ['busybox cat /proc/1/cmdline'], linux: { security_context: { namespace_options: { pid: 3, target_id: id } } } } }, { targetPid: pid })
    assert.equal(await outputOf(target, joined), 'busybox\0sleep\x00600\0')
    const shared = `shared-${process.pid}`
    assert.equal(await outputOf(shared, containerOf(shared, { config: { args: ['busybox cat /proc/1/cmdline'] } })), '/bin/busybox\0sleep\x00600\0')
  })

  test('a privileged container has what its starter has, and the node\'s devices', async () => {
    const id = `privileged-${process.pid}`
    const args = ['busybox grep CapEff /proc/self/status | busybox cut -f2; busybox ls /dev/full2; busybox mount -t tmpfs none /proc/tty && echo mounted']
    const output = await outputOf(id, containerOf(id, { config: { args, linux: { security_context: { privileged: true } } } }))
    const known = (1n << BigInt((facts.capLastCap ?? 0) + 1)) - 1n
    const [capabilities, ...rest] = output.trim().split('\n')
    assert.equal(BigInt(`0x${capabilities}`), (facts.effectiveCapabilities ?? 0n) & known)
    assert.deepEqual(rest, ['/dev/full2', 'mounted'])
  })

  const sandboxOom = (): number => sandboxSpec(sandboxInput({ facts })).process?.oomScoreAdj ?? Number.NaN
})
