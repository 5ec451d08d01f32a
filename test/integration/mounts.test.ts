// What a container's mounts are: propagation, recursive read-only, order, what is in the way, host paths that are odd or hang, volumes of images.
import assert from 'node:assert/strict'
import { closeSync, openSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { type Mount, MountPropagation } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { Linux, type MountFlag } from '../../src/linux/linux.ts'
import { directory, file, symlink as link } from '../images/tar.ts'
import { output } from '../fixtures/command.ts'
import { type ContainerNode, imageName, type Pod, startContainerNode, statusOf } from './container-node.ts'
import { eventually } from './private-node.ts'

const { PROPAGATION_BIDIRECTIONAL, PROPAGATION_HOST_TO_CONTAINER } = MountPropagation
const secret = await mkdtemp(join(tmpdir(), 'cri-shim-outside-'))
const codes = { INVALID_ARGUMENT: 3, DEADLINE_EXCEEDED: 4, FAILED_PRECONDITION: 9, UNAVAILABLE: 14 } as const

let node: ContainerNode
let linux: Linux
let pod: Pod

before(async () => {
  await writeFile(join(secret, 'file'), 'the node\'s')
  node = await startContainerNode([
    { name: 'escaping', entries: [directory('ok'), file('ok/file', 'image'), link('outside', secret), link('climbing', `../../../..${secret}`)], config: { Volumes: { '/outside': {}, '/climbing': {}, '/ok/../ok': {}, '/../up': {} } } },
  ])
  linux = await Linux.start({ log: { warn: () => undefined, info: () => undefined } })
  pod = await node.pod('pod', { linux: { security_context: { privileged: true } } })
})
after(async () => {
  try {
    await node[Symbol.asyncDispose]()
  } finally {
    await linux.close()
    await rm(secret, { recursive: true })
  }
})

/** A directory of the node's that is a mount point with this propagation; gone with the test. */
async function mountPoint(t: { after: (work: () => Promise<void>) => void }, name: string, flag: MountFlag, source?: string): Promise<string> {
  const path = join(node.dir, name)
  await mkdir(path)
  await linux.mount(source === undefined ? { source: 'tmpfs', target: path, fstype: 'tmpfs', flags: [flag] } : { source, target: path, flags: ['bind', flag] })
  t.after(async () => linux.unmount(path, { detach: true }))
  return path
}

const privileged = { linux: { security_context: { privileged: true } } }

describe('propagation', () => {
  it('is refused where the node\'s mount does not allow it; the message names that mount and the remedy', async (t) => {
    const [priv, shared] = [await mountPoint(t, 'private', 'private'), await mountPoint(t, 'shared', 'shared')]
    const slave = await mountPoint(t, 'slave', 'slave', shared)
    await mkdir(join(priv, 'below'))
    const cases = [[priv, PROPAGATION_BIDIRECTIONAL, 'private'], [priv, PROPAGATION_HOST_TO_CONTAINER, 'private'], [join(priv, 'below'), PROPAGATION_HOST_TO_CONTAINER, 'private'], [slave, PROPAGATION_BIDIRECTIONAL, 'slave']] as const
    for (const [path, propagation, actual] of cases) {
      const { code, details } = await statusOf(node.create(pod, 'refused', { command: ['true'], mounts: [{ host_path: path, container_path: '/mnt', propagation }] }))
      assert.equal(code, codes.FAILED_PRECONDITION, details)
      const mounted = path === slave ? slave : priv
      assert.match(details, new RegExp(`mount /mnt: .*${path} is on ${mounted}, which is ${actual}; run "mount --make-rshared ${mounted}"`))
    }
    for (const propagation of [PROPAGATION_HOST_TO_CONTAINER, PROPAGATION_BIDIRECTIONAL]) {
      const { status, id } = await node.run(pod, `allowed-${propagation}`, 'true', { ...privileged, mounts: [{ host_path: shared, container_path: '/mnt', propagation }] })
      assert.equal(status.exit_code, 0)
      assert.equal((await node.status(id)).mounts[0]?.propagation, propagation)
    }
    assert.equal((await node.run(pod, 'from-slave', 'true', { mounts: [{ host_path: slave, container_path: '/mnt', propagation: PROPAGATION_HOST_TO_CONTAINER }] })).status.exit_code, 0)
  })
})

describe('read-only mounts', () => {
  const script = 'touch /mnt/top 2>/dev/null || echo top-read-only; touch /mnt/sub/file 2>/dev/null || echo sub-read-only'

  it('are so for one file system, or for all below it, and the status says which', async (t) => {
    const path = join(node.dir, 'nested-ro')
    await mkdir(path)
    await mountPoint(t, 'nested-ro/sub', 'private')
    const mounts = (more: Init<Mount>): Init<Mount>[] => [{ host_path: path, container_path: '/mnt', readonly: true, ...more }]
    assert.equal((await node.run(pod, 'ro', script, { mounts: mounts({}) })).output, 'top-read-only\n')
    const recursive = await node.run(pod, 'rro', script, { mounts: mounts({ recursive_read_only: true }) })
    assert.equal(recursive.output, 'top-read-only\nsub-read-only\n')
    assert.equal(recursive.status.mounts[0]?.recursive_read_only, true)
    for (const wrong of [{ recursive_read_only: true, readonly: false }, { recursive_read_only: true, propagation: PROPAGATION_HOST_TO_CONTAINER }]) {
      const shared = await statusOf(node.create(pod, 'refused', { command: ['true'], mounts: [{ host_path: await sharedMount(t), container_path: '/mnt', readonly: true, ...wrong }] }))
      assert.equal(shared.code, codes.INVALID_ARGUMENT, shared.details)
      assert.match(shared.details, /recursive_read_only/)
    }
  })
})

let mounted = 0
const sharedMount = (t: Parameters<typeof mountPoint>[0]): Promise<string> => mountPoint(t, `shared-${mounted++}`, 'shared')

describe('several mounts', () => {
  it('hide none of each other whatever their order; of two on one path the later is seen', async () => {
    for (const name of ['outer', 'inner', 'deepest', 'other']) {
      await mkdir(join(node.dir, name, name === 'outer' ? 'in/most' : '.'), { recursive: true })
      await writeFile(join(node.dir, name, 'who'), name)
    }
    await mkdir(join(node.dir, 'inner/most'))
    const at = (name: string, path: string): Init<Mount> => ({ host_path: join(node.dir, name), container_path: path })
    const { output: seen } = await node.run(pod, 'nested', 'for d in /v /v/in /v/in/most /w; do cat $d/who; echo; done', {
      mounts: [at('deepest', '/v/in/most'), at('inner', '/v/in'), at('outer', '/v'), at('outer', '/w'), at('other', '/w/')],
    })
    assert.equal(seen, 'outer\ninner\ndeepest\nother\n')
  })

  it('of the request take the place of the pod\'s own files and of what every container has', async () => {
    await writeFile(join(node.dir, 'own-hosts'), '203.0.113.9 mine\n')
    await mkdir(join(node.dir, 'own-shm'))
    await writeFile(join(node.dir, 'termination-log'), '')
    const { output: seen } = await node.run(pod, 'replaced', 'cat /etc/hosts; grep -c " /dev/shm " /proc/self/mountinfo; touch /dev/shm/here; echo the last word > /dev/termination-log; test -e /proc/self || echo no-proc', {
      mounts: [
        { host_path: join(node.dir, 'own-hosts'), container_path: '/etc/hosts' }, { host_path: join(node.dir, 'own-shm'), container_path: '/dev/shm' },
        { host_path: join(node.dir, 'termination-log'), container_path: '/dev/termination-log' },
      ],
    })
    assert.equal(seen, '203.0.113.9 mine\n1\n')
    assert.ok((await stat(join(node.dir, 'own-shm/here'))).isFile())
    assert.equal(await readFile(join(node.dir, 'termination-log'), 'utf8'), 'the last word\n')
  })
})

describe('host paths', () => {
  it('that are links to nowhere, or below a file, are refused by name', async () => {
    await symlink('/no/such/target', join(node.dir, 'dangling'))
    await writeFile(join(node.dir, 'plain'), '')
    for (const path of [join(node.dir, 'dangling'), join(node.dir, 'plain/below')]) {
      const { details } = await statusOf(node.create(pod, 'refused', { command: ['true'], mounts: [{ host_path: path, container_path: '/mnt' }] }))
      assert.match(details, new RegExp(`mount /mnt: .*${path}`))
    }
  })

  it('that hang hold up nobody else: the call fails at its deadline, the next at once, and both say where', async (t) => {
    const path = join(node.dir, 'hung')
    await mkdir(path)
    const fd = openSync('/dev/fuse', 'r+')
    let open = true
    const answer = (): void => {
      if (open) closeSync(fd)
      open = false
    }
    t.after(async () => {
      answer()
      await linux.unmount(path, { detach: true })
    })
    await linux.mount({ source: 'hung', target: path, fstype: 'fuse', data: `fd=${fd},rootmode=40000,user_id=0,group_id=0` })
    const config = { command: ['true'], mounts: [{ host_path: join(path, 'data'), container_path: '/mnt' }] }
    const hanging = statusOf(node.create(pod, 'hanging', config))
    assert.equal((await node.run(pod, 'meanwhile', 'echo runs', { mounts: [{ host_path: node.dir, container_path: '/mnt', readonly: true }] })).output, 'runs\n')
    const first = await hanging
    assert.equal(first.code, codes.DEADLINE_EXCEEDED, first.details)
    assert.match(first.details, new RegExp(`mount /mnt: .*${path}/data`))
    await eventually('the hung thread is given up', async () => (await readFile(node.shim.logFile, 'utf8')).includes('its thread is set aside'))
    const second = await statusOf(node.create(pod, 'hanging', config))
    assert.equal(second.code, codes.UNAVAILABLE, second.details)
    assert.match(second.details, new RegExp(path))
    answer()
    assert.deepEqual((await node.cri.runtime.ListContainers({})).containers.filter(({ metadata }) => metadata?.name === 'hanging'), [])
  })
})

describe('volumes that an image declares', () => {
  it('hold nothing of the node\'s, wherever the image\'s links lead, and go with the container', async () => {
    const { output: seen, id } = await node.run(pod, 'escaping', 'cat /outside/file /climbing/file 2>/dev/null; cat /ok/file; echo; ls -d /up; echo changed > /ok/file; grep -c /volumes/ /proc/self/mountinfo', { image: { image: imageName('escaping') } })
    assert.equal(seen, 'image\n/up\n4\n')
    assert.equal(await readFile(join(secret, 'file'), 'utf8'), 'the node\'s')
    const dir = join(node.dir, 'shim-root/containers', id)
    assert.match(await output('find', [join(dir, 'volumes'), '-type', 'f', '-printf', '%f\n']), /^file\n$/)
    await node.cri.runtime.RemoveContainer({ container_id: id })
    await assert.rejects(stat(dir), { code: 'ENOENT' })
  })
})

it('volumes that images declare are left out where the node says so', async () => {
  await using other = await startContainerNode([{ name: 'declaring', entries: [directory('data'), file('data/file', 'image')], config: { Volumes: { '/data': {} } } }], '  ignore_image_defined_volumes = true')
  const { output: seen } = await other.run(await other.pod('pod'), 'ignored', 'cat /data/file; grep -c " /data " /proc/self/mountinfo', { image: { image: imageName('declaring') } })
  assert.equal(seen, 'image0\n')
})
