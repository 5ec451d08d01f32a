// Bad input: every call says what is wrong with it, with the right code, and leaves nothing.
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Code, codeName } from '../../src/errors/cri-error.ts'
import { type ContainerConfig, type CreateContainerRequest, NamespaceMode } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type ContainerNode, type Pod, shellImage, startContainerNode, statusOf } from './container-node.ts'

let node: ContainerNode
let pod: Pod
let other: Pod
let otherContainer: string

before(async () => {
  node = await startContainerNode()
  pod = await node.pod('pod')
  other = await node.pod('other')
  otherContainer = (await node.start(other, 'other', { command: ['sleep', '1000'] })).id
  await writeFile(join(node.dir, 'file'), '')
})
after(async () => { await node[Symbol.asyncDispose]() })

type Config = () => Init<ContainerConfig>
const security = (context: NonNullable<NonNullable<Init<ContainerConfig>['linux']>['security_context']>): Config => () => ({ linux: { security_context: context } })
const resources = (given: NonNullable<NonNullable<Init<ContainerConfig>['linux']>['resources']>): Config => () => ({ linux: { resources: given } })

describe('CreateContainer with a configuration that cannot be', () => {
  const { INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION } = Code
  const cases: readonly (readonly [what: string, config: Config, code: number, details: RegExp])[] = [
    ['no metadata', () => ({ metadata: undefined }), INVALID_ARGUMENT, /config\.metadata is missing/],
    ['an empty name', () => ({ metadata: { name: '' } }), INVALID_ARGUMENT, /config\.metadata\.name is empty/],
    ['a name with a slash', () => ({ metadata: { name: '../x' } }), INVALID_ARGUMENT, /config\.metadata\.name .* must not contain/],
    ['a name without end', () => ({ metadata: { name: 'x'.repeat(300) } }), INVALID_ARGUMENT, /longer than 253/],
    ['no image', () => ({ image: undefined }), INVALID_ARGUMENT, /config\.image is missing/],
    ['an image that is not here', () => ({ image: { image: 'registry.k8s.io/not/here:1' } }), NOT_FOUND, /registry\.k8s\.io\/not\/here:1 is not on this node: pull it/],
    ['an image name that can be none', () => ({ image: { image: 'UPPER CASE' } }), INVALID_ARGUMENT, /UPPER CASE/],
    ['a label that is too long', () => ({ labels: { key: 'x'.repeat(5000) } }), INVALID_ARGUMENT, /label key .* 4096/],
    ['a label of the runtime\'s', () => ({ labels: { 'io.cri-containerd.kind': 'sandbox' } }), INVALID_ARGUMENT, /reserved/],
    ['a relative working directory', () => ({ working_dir: 'relative' }), INVALID_ARGUMENT, /working directory "relative"/],
    ['a working directory outside', () => ({ working_dir: '/proc/self/fd/7' }), INVALID_ARGUMENT, /leads out of the container/],
    ['a variable without a name', () => ({ envs: [{ key: '', value: Buffer.from('x') }] }), INVALID_ARGUMENT, /environment variable ""/],
    ['a variable named a=b', () => ({ envs: [{ key: 'a=b', value: Buffer.from('x') }] }), INVALID_ARGUMENT, /environment variable "a=b"/],
    ['a variable with a NUL', () => ({ envs: [{ key: 'a', value: Buffer.from('x\0y') }] }), INVALID_ARGUMENT, /variable "a".*NUL/],
    ['an argument with a NUL', () => ({ command: ['sh', 'a\0b'] }), INVALID_ARGUMENT, /argument 1 .*NUL/],
    ['a mount without a host path', () => ({ mounts: [{ container_path: '/x' }] }), INVALID_ARGUMENT, /mount \/x: host_path is empty/],
    ['a relative host path', () => ({ mounts: [{ container_path: '/x', host_path: 'relative' }] }), INVALID_ARGUMENT, /host_path "relative"/],
    ['a relative container path', () => ({ mounts: [{ container_path: 'x', host_path: node.dir }] }), INVALID_ARGUMENT, /container_path "x"/],
    ['a mount on the root', () => ({ mounts: [{ container_path: '/', host_path: node.dir }] }), INVALID_ARGUMENT, /container path is "\/"/],
    ['a mount below a file', () => ({ mounts: [{ container_path: '/x', host_path: join(node.dir, 'file', 'below') }] }), FAILED_PRECONDITION, /mount \/x.*file/],
    ['a mount propagation that is none', () => ({ mounts: [{ container_path: '/x', host_path: node.dir, propagation: 17 }] }), INVALID_ARGUMENT, /17/],
    ['an image volume to write to', () => ({ mounts: [{ container_path: '/x', image: { image: shellImage } }] }), INVALID_ARGUMENT, /ImageVolumeMountFailed: .*readonly must be true/],
    ['an image volume of a host path', () => ({ mounts: [{ container_path: '/x', host_path: '/x', readonly: true, image: { image: shellImage } }] }), INVALID_ARGUMENT, /not of both/],
    ['an image volume of an image that is not here', () => ({ mounts: [{ container_path: '/x', readonly: true, image: { image: 'registry.k8s.io/not/here:1' } }] }), NOT_FOUND, /ImageVolumeMountFailed: .*not on this node: pull it/],
    ['a sub path of no image', () => ({ mounts: [{ container_path: '/x', host_path: '/x', image_sub_path: 'etc' }] }), INVALID_ARGUMENT, /image_sub_path/],
    ['recursive read-only without read-only', () => ({ mounts: [{ container_path: '/x', host_path: node.dir, recursive_read_only: true }] }), INVALID_ARGUMENT, /recursive_read_only/],
    ['device permissions that are none', () => ({ devices: [{ host_path: '/dev/null', container_path: '/dev/x', permissions: 'xyz' }] }), INVALID_ARGUMENT, /"xyz"/],
    ['a device that is not there', () => ({ devices: [{ host_path: '/dev/no-such-device', container_path: '/dev/x', permissions: 'r' }] }), INVALID_ARGUMENT, /\/dev\/no-such-device/],
    ['a device that is a file', () => ({ devices: [{ host_path: '/etc/passwd', container_path: '/dev/x', permissions: 'r' }] }), INVALID_ARGUMENT, /\/etc\/passwd.*not a device/],
    ['a stop signal that is none', () => ({ stop_signal: 1234 }), INVALID_ARGUMENT, /stop_signal.*1234/],
    ['a windows section', () => ({ windows: {} }), INVALID_ARGUMENT, /windows/],
    ['privileged in a pod that is not', security({ privileged: true }), INVALID_ARGUMENT, /privileged/],
    ['a negative user', security({ run_as_user: { value: '-1' } }), INVALID_ARGUMENT, /run_as_user/],
    ['a group without a user', security({ run_as_group: { value: '5' } }), INVALID_ARGUMENT, /run_as_group 5/],
    ['a user name that is unknown', security({ run_as_username: 'who' }), INVALID_ARGUMENT, /"who"/],
    ['a user name like a number', security({ run_as_username: '0x10' }), INVALID_ARGUMENT, /0x10/],
    ['a group beyond all bounds', security({ supplemental_groups: ['4294967296'] }), INVALID_ARGUMENT, /supplemental_groups/],
    ['a capability that is none', security({ capabilities: { add_capabilities: ['NO_SUCH_THING'] } }), INVALID_ARGUMENT, /NO_SUCH_THING/],
    ['a seccomp profile that is not there', security({ seccomp: { profile_type: 2, localhost_ref: '/no/such/profile.json' } }), INVALID_ARGUMENT, /\/no\/such\/profile\.json/],
    ['a masked path that is relative', security({ masked_paths: ['proc'] }), INVALID_ARGUMENT, /"proc"/],
    ['a PID namespace of nobody', security({ namespace_options: { pid: NamespaceMode.TARGET } }), INVALID_ARGUMENT, /target_id is empty/],
    ['a PID namespace of who is not there', security({ namespace_options: { pid: NamespaceMode.TARGET, target_id: 'nosuch' } }), NOT_FOUND, /nosuch/],
    ['a PID namespace of another pod', () => security({ namespace_options: { pid: NamespaceMode.TARGET, target_id: otherContainer } })(), INVALID_ARGUMENT, /not of pod sandbox/],
    ['a negative memory limit', resources({ memory_limit_in_bytes: '-5' }), INVALID_ARGUMENT, /memory/],
    ['an oom_score_adj beyond bounds', resources({ oom_score_adj: '5000' }), INVALID_ARGUMENT, /oom_score_adj/],
  ]
  for (const [what, config, code, pattern] of cases) {
    it(`${what}: ${codeName(code)}`, async () => {
      const { code: actual, details } = await statusOf(node.create(pod, 'refused', { command: ['true'], ...config() }))
      assert.equal(codeName(actual), codeName(code), details)
      assert.match(details, pattern)
      assert.deepEqual((await node.cri.runtime.ListContainers({ filter: { pod_sandbox_id: pod.id } })).containers, [])
    })
  }
})

describe('requests that are not complete', () => {
  const config = { metadata: { name: 'c' }, image: { image: shellImage }, command: ['true'] }
  const create = (request: () => Init<CreateContainerRequest>) => async (): Promise<unknown> => node.cri.runtime.CreateContainer(request())
  const cases: readonly (readonly [what: string, call: () => Promise<unknown>, code: number, details: RegExp])[] = [
    ['CreateContainer without anything', create(() => ({})), Code.INVALID_ARGUMENT, /config is missing/],
    ['CreateContainer in no pod', create(() => ({ config, sandbox_config: pod.config })), Code.INVALID_ARGUMENT, /no pod sandbox id given/],
    ['CreateContainer in an unknown pod', create(() => ({ config, pod_sandbox_id: 'nosuch', sandbox_config: pod.config })), Code.NOT_FOUND, /no pod sandbox with id nosuch/],
    ['CreateContainer with a pod configuration without metadata', create(() => ({ config, pod_sandbox_id: pod.id, sandbox_config: {} })), Code.INVALID_ARGUMENT, /sandbox_config\.metadata is missing/],
    ['StartContainer of nothing', async () => node.cri.runtime.StartContainer({}), Code.INVALID_ARGUMENT, /no container id given/],
    ['StartContainer of one unknown', async () => node.cri.runtime.StartContainer({ container_id: 'nosuch' }), Code.NOT_FOUND, /no container with id nosuch/],
    ['StopContainer with a negative timeout', async () => node.cri.runtime.StopContainer({ container_id: 'nosuch', timeout: '-1' }), Code.INVALID_ARGUMENT, /timeout -1 is negative/],
    ['StopContainer of nothing', async () => node.cri.runtime.StopContainer({}), Code.INVALID_ARGUMENT, /no container id given/],
    ['RemoveContainer of nothing', async () => node.cri.runtime.RemoveContainer({}), Code.INVALID_ARGUMENT, /no container id given/],
    ['StopPodSandbox of nothing', async () => node.cri.runtime.StopPodSandbox({}), Code.INVALID_ARGUMENT, /no pod sandbox id given/],
    ['RemovePodSandbox of nothing', async () => node.cri.runtime.RemovePodSandbox({}), Code.INVALID_ARGUMENT, /no pod sandbox id given/],
    ['ContainerStatus of nothing', async () => node.cri.runtime.ContainerStatus({}), Code.INVALID_ARGUMENT, /no container id given/],
    ['ContainerStatus of a pod', async () => node.cri.runtime.ContainerStatus({ container_id: pod.id }), Code.NOT_FOUND, /no container with id/],
    ['ContainerStats of nothing', async () => node.cri.runtime.ContainerStats({}), Code.INVALID_ARGUMENT, /no container id given/],
    ['ReopenContainerLog of nothing', async () => node.cri.runtime.ReopenContainerLog({}), Code.INVALID_ARGUMENT, /no container id given/],
    ['ExecSync in a pod', async () => node.cri.runtime.ExecSync({ container_id: pod.id, cmd: ['true'] }), Code.NOT_FOUND, /no container with id/],
    ['PodSandboxStatus of a container', async () => node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: otherContainer }), Code.NOT_FOUND, /no pod sandbox with id/],
    ['UpdateRuntimeConfig without one', async () => node.cri.runtime.UpdateRuntimeConfig({}), Code.INVALID_ARGUMENT, /runtime_config is missing/],
    ['Exec of nothing', async () => node.cri.runtime.Exec({ cmd: ['true'], stdout: true }), Code.INVALID_ARGUMENT, /no container id given/],
    ['CheckpointContainer to nowhere', async () => node.cri.runtime.CheckpointContainer({ container_id: otherContainer }), Code.INVALID_ARGUMENT, /location is missing/],
  ]
  for (const [what, call, code, pattern] of cases) {
    it(`${what}: ${codeName(code)}`, async () => {
      const { code: actual, details } = await statusOf(call())
      assert.equal(codeName(actual), codeName(code), details)
      assert.match(details, pattern)
    })
  }

  it('are nothing to fail for where a thing is to go that is not there', async () => {
    await node.cri.runtime.StopContainer({ container_id: 'nosuch' })
    await node.cri.runtime.RemoveContainer({ container_id: 'nosuch' })
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: 'nosuch' })
    await node.cri.runtime.RemovePodSandbox({ pod_sandbox_id: 'nosuch' })
    assert.equal((await node.cri.runtime.ListContainers({})).containers.length, 1, 'and nothing else goes in its place')
  })

  it('say which one is meant when a shortened id fits several', async () => {
    const made = await Promise.all(Array.from({ length: 17 }, async (_, index) => node.create(pod, `many-${index}`, { command: ['true'] })))
    const counts = Map.groupBy(made, ({ id }) => id.slice(0, 1))
    const [prefix = ''] = [...counts].find(([, those]) => those.length > 1) ?? []
    const { code, details } = await statusOf(node.cri.runtime.RemoveContainer({ container_id: prefix }))
    assert.equal(code, Code.FAILED_PRECONDITION)
    assert.match(details, /give more of it/)
    for (const { id } of made) await node.cri.runtime.RemoveContainer({ container_id: id })
  })
})
