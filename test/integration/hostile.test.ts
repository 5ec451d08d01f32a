// Images and pods that mean harm, each after a vulnerability that a container runtime has had: what they try does not happen.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { lstat, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Containerd } from '../../src/containerd/containerd.ts'
import { Code } from '../../src/errors/cri-error.ts'
import { type ContainerConfig, NamespaceMode, SupplementalGroupsPolicy } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { backgroundCtx } from '../../src/observability/context.ts'
import { createLogger } from '../../src/observability/logger.ts'
import { createMetrics } from '../../src/observability/metrics.ts'
import { file, symlink, type TarEntry } from '../images/tar.ts'
import { type ContainerNode, type ExtraImage, type Pod, imageName, startContainerNode, statusOf } from './container-node.ts'

/** What was given to CVE-2026-53488: labels that containerd, its plugins and its CRI service act upon. */
const hostileLabels = {
  'containerd.io/restart.status': 'running', 'containerd.io/restart.loguri': 'binary:///bin/sh?-c=id', 'containerd.io/gc.root': '1', 'io.cri-containerd.kind': 'sandbox', 'io.cri-containerd.image': 'managed',
}
const hostileUsers = ['2147483648', '4294967296', '9223372036854775808', '00', '+0', '0x0', '1000:4294967296', '4294967296:0']

/** Far out of the image, to a place on the node. */
const outside = (path: string): string => `../../../../../../../..${path}`

let host: string
let node: ContainerNode
let pod: Pod
const uses = new AsyncDisposableStack()

function images(): ExtraImage[] {
  const names = hostileUsers.flatMap((user) => user.split(':'))
  const asRoot: readonly TarEntry[] = [file('etc/passwd', names.map((name) => `${name}:x:0:0::/:/bin/sh\n`).join('')), file('etc/group', names.map((name) => `${name}:x:0:\n`).join(''))]
  const big = Buffer.alloc(9 * 1024 * 1024, 'g:x:5:app\n')
  return [
    { name: 'labels', config: { Cmd: ['sh'], Labels: { ...hostileLabels, 'org.opencontainers.image.title': 'kept' } } },
    ...hostileUsers.map((User, index) => ({ name: `user-${index}`, entries: asRoot, config: { Cmd: ['sh'], User } })),
    { name: 'big-passwd', entries: [file('etc/passwd', big)], config: { Cmd: ['sh'], User: 'app' } },
    { name: 'big-group', entries: [file('etc/group', big)], config: { Cmd: ['sh'], User: '5' } },
    { name: 'endless-passwd', entries: [{ type: 'character-device', path: 'etc/passwd', major: 1, minor: 5 }], config: { Cmd: ['sh'], User: 'app' } },
    { name: 'endless-group', entries: [{ type: 'character-device', path: 'endless', major: 1, minor: 8 }, symlink('etc/group', '/endless')], config: { Cmd: ['sh'], User: '5' } },
    { name: 'far-passwd', entries: [symlink('etc/passwd', outside(`${host}/secret/loot`))], config: { Cmd: ['sh'], User: 'loot' } },
    { name: 'volumes', entries: [symlink('link', outside(`${host}/secret`))], config: { Cmd: ['sh'], Volumes: { [`/${outside(`${host}/secret`)}`]: {}, '/link': {} } } },
    { name: 'workdir', config: { Cmd: ['sh'], WorkingDir: '/proc/self/fd/8' } },
    { name: 'etc-link', entries: [symlink('etc', outside(`${host}/etc`))], config: { Cmd: ['sh'] } },
    { name: 'home', config: { Cmd: ['sh'], Env: ['HOME=/x\nroot::0:0::/:/bin/sh'] } },
    { name: 'groups', entries: [file('etc/passwd', 'app:x:1000:1000::/:/bin/sh\n'), file('etc/group', 'app:x:1000:\nstaff:x:2000:app\n')], config: { Cmd: ['sh'], User: 'app' } },
  ]
}

before(async () => {
  host = await mkdtemp(join(tmpdir(), 'cri-shim-hostile-'))
  uses.defer(() => rm(host, { recursive: true, force: true }))
  await mkdir(join(host, 'secret'))
  await mkdir(join(host, 'etc'))
  await writeFile(join(host, 'secret', 'loot'), 'loot:x:0:0::/:\n')
  node = uses.use(await startContainerNode(images()))
  pod = await node.pod('pod')
})
after(async () => { await uses.disposeAsync() })

const image = (name: string): Init<ContainerConfig> => ({ image: { image: imageName(name) } })

async function refused(what: Promise<unknown>, message: RegExp, code: number = Code.INVALID_ARGUMENT): Promise<void> {
  const status = await statusOf(what)
  assert.match(status.details, message)
  assert.equal(status.code, code, status.details)
}

describe('what an image says', () => {
  it('CVE-2026-53488: labels that containerd acts upon do not get from an image to its container', async () => {
    const { id } = await node.create(pod, 'labels', { ...image('labels'), labels: { own: 'kept' } })
    const containerd = new Containerd({ address: `unix://${node.containerd.socket}`, metrics: createMetrics() })
    try {
      const record = await containerd.containers.get(backgroundCtx(createLogger('fatal'), 'test'), id)
      assert.ok(record)
      assert.deepEqual(Object.keys(record.labels).toSorted(), ['io.cri-containerd.kind', 'org.opencontainers.image.title', 'own'])
      assert.equal(record.labels['io.cri-containerd.kind'], 'container')
    } finally {
      containerd.close()
    }
    assert.ok((await node.cri.runtime.ListContainers({ filter: { id } })).containers.length === 1)
  })

  it('CVE-2026-53488: nor from a request', async () => {
    for (const [key, value] of Object.entries(hostileLabels)) await refused(node.create(pod, 'request-labels', { labels: { [key]: value } }), /reserved for the runtime/)
  })

  for (const [index, user] of hostileUsers.entries()) {
    it(`CVE-2024-40635, CVE-2026-46680: USER ${user} is nobody, whatever /etc/passwd calls root`, async () => {
      await refused(node.create(pod, `user-${index}`, image(`user-${index}`)), /invalid USER/)
    })
  }

  it('CVE-2024-40635, CVE-2026-46680: nor does a request get root by such a name', async () => {
    const as = (context: object): Promise<unknown> => node.create(pod, 'asked', { ...image('user-0'), linux: { security_context: context } })
    for (const name of ['4294967296', '00', '+0']) await refused(as({ run_as_username: name }), /invalid USER/)
    await refused(as({ run_as_user: { value: '4294967296' } }), /run_as_user 4294967296 is out of range/)
    await refused(as({ run_as_user: { value: '1' }, run_as_group: { value: '2147483648' } }), /run_as_group 2147483648 is out of range/)
    await refused(as({ run_as_user: { value: '5' }, supplemental_groups: ['4294967296'] }), /supplemental_groups 4294967296/)
  })

  it('CVE-2025-4437, CVE-2026-47262: users and groups without end are not read to the end', async () => {
    await refused(node.create(pod, 'big-passwd', image('big-passwd')), /the image's \/etc\/passwd cannot be used: .*larger than/)
    await refused(node.create(pod, 'big-group', image('big-group')), /the image's \/etc\/group cannot be used: .*larger than/)
    await refused(node.create(pod, 'endless-passwd', image('endless-passwd')), /\/etc\/passwd cannot be used: .*character-device, not a regular file/)
    await refused(node.create(pod, 'endless-group', image('endless-group')), /\/etc\/group cannot be used: .*character-device, not a regular file/)
  })

  it('users are looked up in the image, wherever its links point', async () => {
    await refused(node.create(pod, 'far-passwd', image('far-passwd')), /no users found named "loot"/)
  })

  it('CVE-2022-23648: a volume that an image declares brings nothing of the node into the container', async () => {
    const { output, status } = await node.run(pod, 'volumes', `ls -A ${host}/secret /link; find / -xdev -name loot`, image('volumes'))
    assert.equal(status.exit_code, 0)
    assert.doesNotMatch(output, /loot/)
  })

  it('CVE-2024-21626: a working directory does not lead out through a descriptor, and none is left open', async () => {
    await refused(node.create(pod, 'workdir', image('workdir')), /leads out of the container/)
    for (const path of ['/proc/self/fd/7', '/proc/1/root', '//proc/./self/cwd', '/dev/fd/9']) await refused(node.create(pod, 'workdir', { working_dir: path }), /leads out of the container/)
    const { output } = await node.run(pod, 'descriptors', 'for fd in /proc/self/fd/*; do readlink $fd; done; pwd')
    // FIFOs of the output, what the shell and readlink opened themselves: nothing of the node's file systems.
    for (const target of output.split('\n').filter((line) => line !== '')) assert.match(target, /^(pipe:\[\d+\]|\/dev\/null|\/proc\/\d+\/fd|\/|.*-(stdout|stderr)|.*\(deleted\))$/, output)
  })

  it('CVE-2024-5154: an /etc that points to the node has nothing written into it', async () => {
    const made = await node.create(pod, 'etc-link', { ...image('etc-link'), command: ['sh', '-c', 'true'] })
    await node.cri.runtime.StartContainer({ container_id: made.id }).catch(() => undefined)
    await node.exited(made.id)
    assert.deepEqual(await readdir(join(host, 'etc')), [])
  })

  it('CVE-2026-15809: a HOME with a line break in it is refused, and no user is made of one', async () => {
    await refused(node.create(pod, 'home-image', image('home')), /HOME has a line break/)
    for (const value of ['/x\nroot::0:0::/:/bin/sh', '/x\rroot']) await refused(node.create(pod, 'home', { envs: [{ key: 'HOME', value: Buffer.from(value) }] }), /HOME has a line break/)
    const { output } = await node.run(pod, 'home-text', 'cat /etc/passwd; echo "$HOME"', { envs: [{ key: 'HOME', value: Buffer.from('/x\\nroot::0:0::') }] })
    assert.equal(output.match(/^root:/gm)?.length, 1)
    assert.match(output, /^\/x\\nroot::0:0::$/m)
  })
})

describe('what a process has', () => {
  it('CVE-2023-25173: it is in its own group and in those that it was given, and in no others', async () => {
    const groups = async (name: string, context: object): Promise<string | undefined> =>
      /^Groups:\s*(.*?)\s*$/m.exec((await node.run(pod, name, 'cat /proc/self/status', { ...image('groups'), linux: { security_context: context } })).output)?.[1]
    assert.equal(await groups('groups', {}), '1000 2000')
    assert.equal(await groups('groups-more', { supplemental_groups: ['3000'] }), '1000 2000 3000')
    assert.equal(await groups('groups-strict', { supplemental_groups: ['3000'], supplemental_groups_policy: SupplementalGroupsPolicy.Strict }), '1000 3000')
    assert.equal(await groups('groups-uid', { run_as_user: { value: '4000' }, run_as_group: { value: '4001' } }), '4001')
  })

  it('CVE-2022-24769: no capability is inheritable', async () => {
    for (const [name, context] of [['inheritable', {}], ['inheritable-added', { capabilities: { add_capabilities: ['NET_ADMIN'] } }]] as const) {
      const { id } = await node.start(pod, name, { command: ['sleep', '1000'], linux: { security_context: context } })
      const { stdout } = await node.cri.runtime.ExecSync({ container_id: id, cmd: ['cat', '/proc/1/status', '/proc/self/status'], timeout: '10' })
      assert.deepEqual(stdout.toString().match(/^CapInh:.*$/gm), ['CapInh:\t0000000000000000', 'CapInh:\t0000000000000000'])
    }
  })

  it('CVE-2021-21334: containers that start at once from one image have each its own environment', async () => {
    const secrets = ['one', 'two', 'three', 'four']
    const outputs = await Promise.all(secrets.map((secret) => node.run(pod, `env-${secret}`, 'env', { envs: [{ key: `SECRET_${secret}`, value: Buffer.from(secret) }] })))
    for (const [index, { output }] of outputs.entries()) assert.deepEqual(output.match(/^SECRET_\w+/gm), [`SECRET_${secrets[index]}`])
  })
})

describe('what a pod asks for', () => {
  const run = (name: string, linux: object, hostname = ''): Promise<unknown> => node.pod(name, { hostname, linux })

  it('CVE-2022-0811: a sysctl\'s value sets no second sysctl', async () => {
    const pattern = await readFile('/proc/sys/kernel/core_pattern', 'utf8')
    for (const value of ['1+kernel.core_pattern=|/evil #', '1\nkernel.core_pattern=|/evil']) await refused(run('sysctl', { sysctls: { 'kernel.shm_rmid_forced': value } }), /characters that are not allowed/)
    for (const name of ['kernel.core_pattern', 'kernel.shm_rmid_forced+kernel.core_pattern', 'kernel/core_pattern']) await refused(run('sysctl', { sysctls: { [name]: '|/evil' } }), /not the name of a sysctl|belongs to the whole node/)
    assert.equal(await readFile('/proc/sys/kernel/core_pattern', 'utf8'), pattern)
  })

  it('CVE-2022-0532: a pod in the node\'s namespaces sets no sysctl of them', async () => {
    const path = '/proc/sys/net/ipv4/ip_local_port_range'
    const range = await readFile(path, 'utf8')
    await refused(run('sysctl', { sysctls: { 'net.ipv4.ip_local_port_range': '40000 40001' }, security_context: { namespace_options: { network: NamespaceMode.NODE } } }), /the pod shares the node's network namespace/)
    await refused(run('sysctl', { sysctls: { 'kernel.shmmax': '1' }, security_context: { namespace_options: { ipc: NamespaceMode.NODE } } }), /the pod shares the node's ipc namespace/)
    assert.equal(await readFile(path, 'utf8'), range)
  })

  it('CVE-2025-0750: names and log paths reach nothing outside the pod\'s own directories', async () => {
    const config = { metadata: { name: 'pod', uid: 'u', namespace: 'tests', attempt: 0 }, log_directory: pod.logDir, linux: {} }
    for (const part of ['name', 'uid', 'namespace']) {
      await refused(node.cri.runtime.RunPodSandbox({ config: { ...config, metadata: { ...config.metadata, [part]: '../../etc' } } }), /must not contain/)
    }
    for (const path of ['../victim.log', 'a/../../victim.log', '/victim.log', '..', 'x/..']) await refused(node.create(pod, 'log', { log_path: path }), /log_path/)
    await refused(node.create(pod, '../log', {}), /must not contain|config\.metadata\.name/)
    await assert.rejects(lstat(join(pod.logDir, '..', 'victim.log')), /ENOENT/)
  })

  it('CVE-2025-0750: removing a pod unmounts nothing that is not its own', async () => {
    const mounted = join(host, 'mounted')
    await mkdir(mounted)
    execFileSync('mount', ['-t', 'tmpfs', 'victim', mounted])
    try {
      await writeFile(join(mounted, 'loot'), '')
      const annotations = { 'io.kubernetes.cri-o.LinkLogs': '../../../mounted', 'io.kubernetes.cri.sandbox-log-directory': mounted }
      const victim = await node.pod('victim', { annotations })
      await node.run(victim, 'mounts', 'ls /data', { annotations, mounts: [{ host_path: mounted, container_path: '/data', readonly: true }] })
      await node.removePod(victim)
      assert.deepEqual(await readdir(mounted), ['loot'])
    } finally {
      execFileSync('umount', [mounted])
    }
  })
})
