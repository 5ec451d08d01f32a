// CheckpointContainer on the real node. What is in an archive needs a CRIU that works on this kernel; that a checkpoint which fails, takes too long or
// loses its service leaves the container as it was needs none.
import assert from 'node:assert/strict'
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { status as grpc } from '@grpc/grpc-js'
import { list } from 'tar'
import { command, output } from '../fixtures/command.ts'
import { busyboxImage } from '../images/catalog.ts'
import { eventually, podConfig, type PrivateNode, pull, removePods, restart, runPod, startNode } from './private-node.ts'

const criu = (await command('sh', ['-c', 'command -v criu'])).stdout.trim()
const works = criu === '' ? undefined : await command(criu, ['check'])
const skip = works === undefined ? 'there is no criu' : works.code !== 0 ? `criu does not work on this kernel: ${works.stderr.trim().split('\n')[0]}` : false

async function failure(call: Promise<unknown>): Promise<{ readonly code: number; readonly details: string }> {
  return call.then(() => assert.fail('it succeeded'), (error: { readonly code: number; readonly details: string }) => error)
}

describe('checkpoints', () => {
  const stack = new AsyncDisposableStack()
  let node: PrivateNode
  let pod = ''
  let id = ''
  let log = ''
  let dir = ''
  let location = ''

  /** What the runtime finds as criu: the real one, or something that fails at once, that waits for the runtime, or for the test. */
  const become = async (how: 'real' | 'failing' | 'waiting' | 'held'): Promise<void> => writeFile(join(dir, 'how'), how)

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'cri-shim-checkpoints-'))
    stack.defer(async () => rm(dir, { recursive: true, force: true }))
    await output('mkfifo', [join(dir, 'hold')])
    const script = `#!/bin/sh\ncase $(cat ${dir}/how) in\nreal) exec ${criu} "$@" ;;\nwaiting) while kill -0 $PPID 2>/dev/null; do sleep 0.1; done ;;\nheld) : > ${dir}/waits; cat ${dir}/hold ;;\nesac\nexit 1\n`
    await writeFile(join(dir, 'criu'), script)
    await chmod(join(dir, 'criu'), 0o755)
    const path = process.env['PATH'] ?? ''
    process.env['PATH'] = [dir, path].join(delimiter)
    node = await startNode()
    process.env['PATH'] = path
    stack.defer(async () => assert.deepEqual(await node.stop(), []))
    await pull(node, busyboxImage)
    const config = podConfig(node)
    pod = await runPod(node, config)
    stack.defer(async () => removePods(node, pod))
    const script_ = 'echo hello > /changed; rm /etc/group; i=0; while :; do echo "line $i"; i=$((i+1)); sleep 0.05; done'
    id = (await node.cri.runtime.CreateContainer({ pod_sandbox_id: pod, sandbox_config: config, config: { metadata: { name: 'counts', attempt: 0 }, image: { image: busyboxImage }, command: ['sh', '-c', script_], log_path: 'counts.log', linux: {} } })).container_id
    log = join(String(config.log_directory), 'counts.log')
    location = join(dir, 'checkpoint.tar')
    await node.cri.runtime.StartContainer({ container_id: id })
    await goesOn()
  })
  after(async () => stack.disposeAsync())

  /** It prints. */
  async function goesOn(): Promise<void> {
    const size = async (): Promise<number> => (await stat(log).catch(() => undefined))?.size ?? 0
    const before_ = await size()
    await eventually('the container prints', async () => await size() > before_)
  }

  async function nothingIsLeft(): Promise<void> {
    const left = async (): Promise<string[]> => [
      ...(await readdir(dir)).filter((name) => name.endsWith('.partial')),
      ...(await readdir(join(node.dir, 'shim-root', 'containers', id))).filter((name) => name !== 'status.json'),
      ...(await node.api.leases.list(node.ctx)).map((lease) => lease.id),
      ...(await node.api.snapshots.list(node.ctx, 'overlayfs')).map(({ name }) => name).filter((name) => name.includes('checkpoint')),
      ...(await node.api.content.statuses(node.ctx)).map(({ ref }) => ref),
    ]
    assert.deepEqual(await left(), [])
    assert.equal((await node.api.tasks.get(node.ctx, id))?.state, 'running')
    await goesOn()
  }

  const checkpoint = async (more: { readonly location?: string; readonly timeout?: string; readonly container_id?: string } = {}): Promise<unknown> => node.cri.runtime.CheckpointContainer({ container_id: id, location, ...more })

  it('refuses what cannot be, before it touches the container', async () => {
    for (const [request, code, words] of [
      [{ container_id: 'nobody' }, grpc.NOT_FOUND, /nobody/], [{ location: '' }, grpc.INVALID_ARGUMENT, /location is missing/], [{ location: 'here.tar' }, grpc.INVALID_ARGUMENT, /absolute path/],
      [{ location: `${dir}/../x.tar` }, grpc.INVALID_ARGUMENT, /absolute path/], [{ location: dir }, grpc.INVALID_ARGUMENT, /is a directory/], [{ location: join(dir, 'missing', 'x.tar') }, grpc.FAILED_PRECONDITION, /no directory .*missing; make it first/],
      [{ timeout: '-1' }, grpc.INVALID_ARGUMENT, /negative/],
    ] as const) {
      const error = await failure(checkpoint(request))
      assert.equal(error.code, code, error.details)
      assert.match(error.details, words)
    }
    const config = podConfig(node)
    const { container_id: created } = await node.cri.runtime.CreateContainer({ pod_sandbox_id: pod, sandbox_config: config, config: { metadata: { name: 'created', attempt: 0 }, image: { image: busyboxImage }, command: ['true'], linux: {} } })
    const error = await failure(checkpoint({ container_id: created }))
    assert.deepEqual([error.code, error.details], [grpc.FAILED_PRECONDITION, `container ${created} is created: only a running container can be checkpointed`])
    await nothingIsLeft()
  })

  it('lets the container go on when CRIU fails', async () => {
    await become('failing')
    const error = await failure(checkpoint())
    assert.equal(error.code, grpc.FAILED_PRECONDITION)
    assert.match(error.details, new RegExp(`^container ${id} cannot be checkpointed: .*criu`, 'i'))
    await nothingIsLeft()
  })

  it('says what CRIU says', { skip: works === undefined ? 'there is no criu' : works.code === 0 ? 'criu works' : false }, async () => {
    await become('real')
    const error = await failure(checkpoint())
    assert.deepEqual([error.code, error.details.startsWith(`container ${id} cannot be checkpointed: `)], [grpc.FAILED_PRECONDITION, true])
    await nothingIsLeft()
  })

  it('lets it go on when the time is up', async () => {
    await become('waiting')
    const error = await failure(checkpoint({ timeout: '1' }))
    assert.equal(error.code, grpc.DEADLINE_EXCEEDED, error.details)
    assert.match(error.details, /took longer than 1 s \(step: dump processes\); the container goes on$/)
    await nothingIsLeft()
  })

  it('lets it go on when the service was killed in the middle', async () => {
    await become('held')
    const over = failure(checkpoint())
    await eventually('criu waits', async () => (await readdir(dir)).includes('waits'))
    await node.shim.end('SIGKILL')
    await over
    await writeFile(join(dir, 'hold'), '')
    await restart(node)
    await eventually('the checkpoint is taken back', async () => (await node.api.tasks.get(node.ctx, id))?.state === 'running' && !(await readdir(join(node.dir, 'shim-root', 'containers', id))).includes('checkpoint'))
    await nothingIsLeft()
  })

  it('lets it go on when containerd was killed in the middle', async () => {
    await become('held')
    await rm(join(dir, 'waits'), { force: true })
    const over = failure(checkpoint())
    await eventually('criu waits', async () => (await readdir(dir)).includes('waits'))
    await node.containerd.end('SIGKILL')
    assert.equal((await over).code, grpc.UNAVAILABLE)
    await writeFile(join(dir, 'hold'), '')
    await node.containerd.start()
    await eventually('the checkpoint is taken back', async () => !(await readdir(join(node.dir, 'shim-root', 'containers', id))).includes('checkpoint'))
    await nothingIsLeft()
  })

  it('writes processes, files, configuration and log to an archive, as often as it is asked', { skip }, async () => {
    await become('real')
    for (let round = 0; round < 2; round++) {
      await checkpoint({ timeout: '60' })
      await nothingIsLeft()
    }
    assert.equal((await stat(location)).mode & 0o777, 0o600)
    const names: string[] = []
    await list({ file: location, onReadEntry: ({ path }) => void names.push(path) })
    for (const name of ['config.dump', 'spec.dump', 'status.dump', 'status', 'rootfs-diff.tar', 'container.log', 'dump.log', 'checkpoint/inventory.img', 'checkpoint/pages-1.img']) assert.ok(names.includes(name), name)
    const text = async (name: string): Promise<string> => output('tar', ['-xOf', location, name])
    const config = JSON.parse(await text('config.dump')) as { readonly id: string; readonly rootfsImage: string }
    assert.deepEqual([config.id, config.rootfsImage], [id, busyboxImage])
    assert.deepEqual(JSON.parse(await text('status.dump')), { ...JSON.parse(await text('status.dump')), id, state: 1 })
    assert.match(await text('spec.dump'), /"ociVersion"/)
    assert.match(await text('container.log'), /line 0\n/)
    await writeFile(join(dir, 'diff.tar'), Buffer.from(await output('sh', ['-c', `tar -xOf ${location} rootfs-diff.tar | base64`]), 'base64'))
    const changed = await output('tar', ['-tf', join(dir, 'diff.tar')])
    assert.match(changed, /^changed$/m)
    assert.match(changed, /^etc\/\.wh\.group$/m)
    assert.equal(await output('tar', ['-xOf', join(dir, 'diff.tar'), 'changed']), 'hello\n')
    assert.match(await readFile(log, 'utf8'), /line/)
  })
})
