// The security context and the devices of containers: what their processes find when they look at themselves.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import { type ContainerConfig, SecurityProfile_ProfileType as Profile } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type ContainerNode, type Pod, startContainerNode, statusOf } from './container-node.ts'

let dir: string
let node: ContainerNode
let pod: Pod
let trusted: Pod
const uses = new AsyncDisposableStack()

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'cri-shim-security-'))
  uses.defer(() => rm(dir, { recursive: true, force: true }))
  for (const name of ['cdi', 'run-cdi', 'devices']) await mkdir(join(dir, name))
  execFileSync('mknod', ['-m', '640', join(dir, 'devices', 'zero'), 'c', '1', '5'])
  execFileSync('mknod', ['-m', '666', join(dir, 'devices', 'null'), 'c', '1', '3'])
  // Of no driver: to open it fails with ENXIO where the device cgroup lets it through, with EPERM where it does not.
  execFileSync('mknod', ['-m', '666', join(dir, 'nobody'), 'c', '240', '77'])
  node = uses.use(await startContainerNode([], `cdi_spec_dirs = ["${dir}/cdi", "${dir}/run-cdi"]\ndevice_ownership_from_security_context = true\nunset_seccomp_profile = "localhost/${dir}/unset.json"`))
  await writeFile(join(dir, 'unset.json'), seccomp('mkdir', 'mkdirat'))
  pod = await node.pod('pod', { linux: { security_context: { seccomp: { profile_type: Profile.RuntimeDefault } } } })
  trusted = await node.pod('trusted', { linux: { security_context: { privileged: true, seccomp: { profile_type: Profile.RuntimeDefault } } } })
})
after(async () => { await uses.disposeAsync() })

type Context = NonNullable<NonNullable<Init<ContainerConfig>['linux']>['security_context']>
const withContext = (context: Context, more: Init<ContainerConfig> = {}): Init<ContainerConfig> => ({ ...more, linux: { security_context: context } })

/** A profile that answers EPERM to some system calls. */
function seccomp(...names: string[]): string {
  return JSON.stringify({ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ names, action: 'SCMP_ACT_ERRNO', errnoRet: 1 }] })
}

async function output(name: string, script: string, context: Context = {}, more: Init<ContainerConfig> = {}): Promise<string> {
  const { status, output: text } = await node.run(context.privileged === true ? trusted : pod, name, script, withContext(context, more))
  assert.equal(status.exit_code, 0, text)
  return text
}

/** The fields of /proc/self/status. */
async function self(name: string, context: Context): Promise<Map<string, string>> {
  return new Map((await output(name, 'cat /proc/self/status', context)).split('\n').map((line) => [line.split(':')[0] ?? '', line.slice(line.indexOf(':') + 1).trim()]))
}

/** What containerd may give away itself: `ALL` here. */
const allCaps = (): string => /^CapEff:\s*(\w+)$/m.exec(execFileSync('cat', [`/proc/${node.containerd.pid}/status`], { encoding: 'utf8' }))?.[1] ?? ''

describe('capabilities', () => {
  const sets = async (name: string, context: Context): Promise<(string | undefined)[]> => {
    const status = await self(name, context)
    return ['CapEff', 'CapPrm', 'CapBnd', 'CapInh', 'CapAmb'].map((key) => status.get(key))
  }
  const none = '0000000000000000'
  const standard = '00000000a80425fb'

  it('are those of Docker and containerd when nothing is said', async () => {
    assert.deepEqual(await sets('caps', {}), [standard, standard, standard, none, none])
  })

  it('are added, dropped, and dropped all', async () => {
    assert.equal((await sets('caps-add', { capabilities: { add_capabilities: ['NET_ADMIN'], drop_capabilities: ['CHOWN'] } }))[0], '00000000a80435fa')
    assert.deepEqual(await sets('caps-drop', { capabilities: { drop_capabilities: ['ALL'] } }), [none, none, none, none, none])
    assert.equal((await sets('caps-one', { capabilities: { drop_capabilities: ['ALL'], add_capabilities: ['KILL'] } }))[2], '0000000000000020')
    assert.equal((await sets('caps-all', { capabilities: { add_capabilities: ['ALL'] } }))[0], allCaps())
  })

  it('reach a process that is not root only by the ambient set', async () => {
    const user = { run_as_user: { value: '1000' }, seccomp: { profile_type: Profile.Unconfined } }
    assert.equal((await sets('caps-user', { ...user, capabilities: { add_capabilities: ['KILL'] } }))[0], none)
    assert.deepEqual(await sets('caps-ambient', { ...user, capabilities: { drop_capabilities: ['ALL'], add_ambient_capabilities: ['KILL'] } }), Array.from({ length: 5 }, () => '0000000000000020'))
  })
})

describe('seccomp', () => {
  const filtered = { seccomp: { profile_type: Profile.RuntimeDefault } }

  it('the runtime\'s default filters, unconfined does not', async () => {
    assert.equal((await self('seccomp-default', filtered)).get('Seccomp'), '2')
    assert.equal((await self('seccomp-none', { seccomp: { profile_type: Profile.Unconfined } })).get('Seccomp'), '0')
    const unshare = 'unshare -U true 2>/dev/null && echo made || echo refused'
    assert.equal(await output('seccomp-unshare', unshare, filtered), 'refused\n')
    assert.equal(await output('seccomp-old-field', unshare, { seccomp_profile_path: 'runtime/default' }), 'refused\n')
  })

  it('a profile of the node\'s is taken, from both fields, and missing ones are named', async () => {
    await writeFile(join(dir, 'chmod.json'), seccomp('chmod', 'fchmodat', 'fchmodat2'))
    const chmod = 'chmod 600 /etc/passwd 2>/dev/null && echo changed || echo refused'
    assert.equal(await output('seccomp-localhost', chmod, { seccomp: { profile_type: Profile.Localhost, localhost_ref: `${dir}/chmod.json` } }), 'refused\n')
    assert.equal(await output('seccomp-localhost-old', chmod, { seccomp_profile_path: `localhost/${dir}/chmod.json` }), 'refused\n')
    assert.equal(await output('seccomp-else', chmod, filtered), 'changed\n')
    await writeFile(join(dir, 'broken.json'), '{"defaultAction": "ALLOW"}')
    for (const [name, message] of [['missing.json', /missing\.json does not exist/], ['broken.json', /broken\.json.*defaultAction is not an action/]] as const) {
      const { code, details } = await statusOf(node.create(pod, name.replace('.', '-'), withContext({ seccomp: { profile_type: Profile.Localhost, localhost_ref: join(dir, name) } })))
      assert.equal(code, Code.INVALID_ARGUMENT)
      assert.match(details, message)
    }
  })

  it('unset_seccomp_profile holds for whom nothing is said about', async () => {
    assert.equal(await output('seccomp-unset', 'mkdir /made 2>/dev/null && echo made || echo refused'), 'refused\n')
    assert.equal(await output('seccomp-set', 'mkdir /made 2>/dev/null && echo made || echo refused', { seccomp: { profile_type: Profile.Unconfined } }), 'made\n')
  })
})

describe('files of the kernel and of the image', () => {
  it('are masked and read-only as the request says', async () => {
    const paths = { masked_paths: ['/proc/version', '/sys/kernel'], readonly_paths: ['/proc/sys'], seccomp: { profile_type: Profile.Unconfined } }
    const probe = 'cat /proc/version | wc -c; ls /sys/kernel | wc -l; touch /proc/sys/net/ipv4/ip_forward 2>/dev/null && echo open || echo refused'
    assert.equal(await output('masked', probe, { ...paths, capabilities: { add_capabilities: ['SYS_ADMIN'] } }), '0\n0\nrefused\n')
    assert.match(await output('unmasked', probe, { seccomp: { profile_type: Profile.Unconfined } }), /^[1-9]\d*\n[1-9]\d*\nopen\n$/)
  })

  it('the root file system is read-only when it should be, its volumes are not', async () => {
    assert.equal(await output('readonly', 'touch /x 2>/dev/null && echo written || echo refused; touch /dev/shm/x && echo shm', { readonly_rootfs: true, seccomp: { profile_type: Profile.Unconfined } }), 'refused\nshm\n')
  })

  it('/sys and its cgroups are read-only, but for privileged containers', async () => {
    // With cgroup v1 there are several hierarchies, on a tmpfs of the runtime's.
    const probe = 'awk \'$2 == "/sys" || $3 == "cgroup" || $3 == "cgroup2" { print substr($4, 1, 2) }\' /proc/mounts | sort -u; cd /sys/fs/cgroup; [ -d pids ] && cd pids; mkdir made 2>/dev/null; ls -d made 2>/dev/null | wc -l; rmdir made 2>/dev/null || true'
    assert.equal(await output('sys', probe), 'ro\n0\n')
    assert.match(await output('sys-privileged', probe, { privileged: true }), /^rw\n1\n$/)
  })
})

describe('no_new_privs and privileged', () => {
  it('no_new_privs is on when asked for', async () => {
    assert.equal((await self('nnp', { no_new_privs: true })).get('NoNewPrivs'), '1')
    assert.equal((await self('nnp-off', { seccomp: { profile_type: Profile.Unconfined }, capabilities: { add_capabilities: ['SYS_ADMIN'] } })).get('NoNewPrivs'), '0')
  })

  it('a privileged container has everything and no filter; ExecSync has what it has', async () => {
    const status = await self('privileged', { privileged: true, capabilities: { drop_capabilities: ['ALL'] }, seccomp: { profile_type: Profile.RuntimeDefault } })
    assert.deepEqual([status.get('CapEff'), status.get('CapInh'), status.get('Seccomp')], [allCaps(), '0000000000000000', '0'])
    const { id } = await node.start(pod, 'exec', withContext({ capabilities: { drop_capabilities: ['ALL'] }, no_new_privs: true, run_as_user: { value: '1000' }, supplemental_groups: ['7'], seccomp: { profile_type: Profile.RuntimeDefault } }, { command: ['sleep', '1000'] }))
    const { stdout } = await node.cri.runtime.ExecSync({ container_id: id, cmd: ['cat', '/proc/self/status'], timeout: '10' })
    const text = stdout.toString()
    for (const line of [/^Uid:\s+1000\s/m, /^Groups:\s*0 7\s*$/m, /^CapBnd:\s+0{16}$/m, /^NoNewPrivs:\s+1$/m, /^Seccomp:\s+2$/m]) assert.match(text, line)
  })
})

describe('devices', () => {
  const device = (path: string, container_path: string, permissions = 'rwm'): Init<ContainerConfig> => ({ devices: [{ host_path: path, container_path, permissions }] })

  it('are there with their permissions, and no others are', async () => {
    const probe = 'cat /dev/x 2>&1; (echo > /dev/x) 2>&1; ls /dev/kmsg 2>/dev/null | wc -l'
    const [reading, writing, others] = (await output('device', probe, {}, device(join(dir, 'nobody'), '/dev/x', 'r'))).split('\n')
    assert.match(reading ?? '', /No such device or address/)
    assert.match(writing ?? '', /[Oo]peration not permitted/)
    assert.equal(others, '0')
  })

  it('come out of a directory, also behind a symbolic link', async () => {
    await symlink(join(dir, 'devices'), join(dir, 'link'))
    assert.equal(await output('device-dir', 'ls /dev/all; head -c 2 /dev/all/zero | wc -c', {}, device(join(dir, 'link'), '/dev/all')), 'null\nzero\n2\n')
  })

  it('belong to the container\'s user (device_ownership_from_security_context)', async () => {
    assert.equal(await output('device-owner', 'stat -c %u:%g:%a /dev/x', { run_as_user: { value: '1000' }, run_as_group: { value: '2000' } }, device(join(dir, 'devices', 'zero'), '/dev/x')), '1000:2000:640\n')
    assert.equal(await output('device-root', 'stat -c %u:%g /dev/x', {}, device('/dev/zero', '/dev/x')), '0:0\n')
  })
})

describe('CDI devices', () => {
  const cdi = (...names: string[]): Init<ContainerConfig> => ({ CDI_devices: names.map((name) => ({ name })) })
  const specification = (value: string): string => `cdiVersion: 0.7.0
kind: vendor.test/thing
containerEdits:
  env: [THING_SPEC=${value}]
devices:
- name: one
  containerEdits:
    env: [THING=${value}]
    additionalGids: [4242]
    deviceNodes:
    - path: /dev/thing
      hostPath: ${dir}/nobody
      permissions: r
    mounts:
    - hostPath: ${dir}/devices
      containerPath: /things
      options: [ro, rbind]
    hooks:
    - hookName: createRuntime
      path: /bin/touch
      args: [touch, ${dir}/hook-${value}]
`

  it('bring variables, devices, mounts, groups and hooks', async () => {
    await writeFile(join(dir, 'cdi', 'thing.yaml'), specification('static'))
    const probe = 'echo $THING_SPEC $THING; cat /dev/thing 2>&1 | grep -c address; (echo > /dev/thing) 2>&1 | grep -c permitted; ls /things; id -G'
    assert.equal(await output('cdi', probe, {}, cdi('vendor.test/thing=one')), 'static static\n1\n1\nnull\nzero\n0 4242\n')
    execFileSync('test', ['-e', join(dir, 'hook-static')])
    assert.equal(await output('cdi-annotation', 'echo $THING', {}, { annotations: { 'cdi.k8s.io/vendor': 'vendor.test/thing=one' } }), 'static\n')
  })

  it('are what the specifications say in the moment of the call; a later directory goes first', async () => {
    await writeFile(join(dir, 'run-cdi', 'thing.yaml'), specification('dynamic'))
    assert.equal(await output('cdi-dynamic', 'echo $THING', {}, cdi('vendor.test/thing=one')), 'dynamic\n')
    await rm(join(dir, 'run-cdi', 'thing.yaml'))
    assert.equal(await output('cdi-static', 'echo $THING', {}, cdi('vendor.test/thing=one')), 'static\n')
  })

  it('that are not there are named, with the directories', async () => {
    const { code, details } = await statusOf(node.create(pod, 'cdi-missing', cdi('vendor.test/thing=two')))
    assert.equal(code, Code.INVALID_ARGUMENT)
    assert.ok(details.includes(`no CDI specification in ${dir}/cdi, ${dir}/run-cdi has the device vendor.test/thing=two; of this kind there are vendor.test/thing=one`), details)
  })
})
