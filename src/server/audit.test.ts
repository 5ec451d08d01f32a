import assert from 'node:assert/strict'
import { test } from 'node:test'
import { notFound } from '../errors/cri-error.ts'
import { NamespaceMode } from '../generated/cri.ts'
import { createMetrics } from '../observability/metrics.ts'
import type { Audit } from './audit.ts'
import { Endpoint } from './endpoint.ts'
import { LogCapture, TestClient, tableOf, temporaryDirectory } from './fixtures.ts'
import type { HandlerTable } from './handlers.ts'

async function fixture(handlers: Partial<HandlerTable>, more: Partial<Audit> = {}) {
  const directory = temporaryDirectory()
  const lines: Record<string, unknown>[] = []
  let arrived = Promise.withResolvers<void>()
  const audit: Audit = {
    write: (line) => {
      lines.push({ ...line })
      arrived.resolve()
      arrived = Promise.withResolvers()
    },
    describeContainer: (id) => ({ namespace: 'n', pod: 'p', container: 'c', containerId: id }),
    describePod: (id) => ({ namespace: 'n', pod: 'p', podSandboxId: id }),
    commands: true,
    lookUp: async (fd) => ({ pid: process.pid, uid: 0, gid: 0, process: fd > 2 ? 'test' : 'no descriptor' }),
    ...more,
  }
  const endpoint = new Endpoint({ handlers: tableOf(handlers), gate: () => undefined, log: new LogCapture().log, metrics: createMetrics(), audit }, { listen: `unix://${directory.path}/cri.sock` })
  await endpoint.listen()
  const client = new TestClient(endpoint.path)
  return {
    client, lines,
    until: async (count: number): Promise<Record<string, unknown>[]> => {
      while (lines.length < count) await arrived.promise
      return lines.map(({ requestId, durationMs, ...line }) => {
        assert.match(String(requestId), /^[0-9a-z]+-[0-9a-z]+$/)
        assert.ok(Number.isInteger(durationMs))
        return line
      })
    },
    async [Symbol.asyncDispose]() {
      client[Symbol.dispose]()
      await endpoint.close({ graceMs: 0, undoMs: 0 })
      directory[Symbol.dispose]()
    },
  }
}

const caller = { pid: process.pid, uid: 0, gid: 0, process: 'test' }
const pod = { name: 'web', namespace: 'shop', uid: 'u', attempt: 0 }

test('a line says who asked for what, and how it ended; nothing secret is in it', async () => {
  await using f = await fixture({
    ExecSync: async () => ({ stdout: Buffer.from('secret'), exit_code: 0 }),
    Exec: async () => ({ url: 'http://127.0.0.1:1/exec/secret' }),
    Attach: () => Promise.reject(notFound('no container with id x')),
    PortForward: async () => ({ url: 'http://127.0.0.1:1/portforward/secret' }),
    RunPodSandbox: async () => ({ pod_sandbox_id: 's1' }),
    CreateContainer: async () => ({ container_id: 'c1' }),
    PullImage: async () => ({ image_ref: 'sha256:1' }),
    RemoveImage: async () => ({}),
    ListContainers: async () => ({}),
  })
  await f.client.call('ExecSync', { container_id: 'x', cmd: ['cat', '/etc/passwd'], timeout: '1' })
  await f.client.call('Exec', { container_id: 'x', cmd: ['sh'], tty: true })
  await f.client.failure('Attach', { container_id: 'x', stdin: true })
  await f.client.call('PortForward', { pod_sandbox_id: 's', port: [80] })
  await f.client.call('RunPodSandbox', { config: { metadata: pod } })
  await f.client.call('RunPodSandbox', { config: { metadata: pod, annotations: { a: 'secret' }, linux: { security_context: { privileged: true } } } })
  await f.client.call('RunPodSandbox', { config: { metadata: pod, linux: { security_context: { namespace_options: { network: NamespaceMode.NODE, pid: NamespaceMode.NODE } } } } })
  const sandbox = { metadata: pod }
  await f.client.call('CreateContainer', { pod_sandbox_id: 's', sandbox_config: sandbox, config: { metadata: { name: 'plain', attempt: 0 } } })
  await f.client.call('CreateContainer', { pod_sandbox_id: 's', sandbox_config: sandbox, config: { metadata: { name: 'root', attempt: 0 }, image: { image: 'busybox' }, envs: [{ key: 'A', value: Buffer.from('secret') }], linux: { security_context: { privileged: true } } } })
  await f.client.call('PullImage', { image: { image: 'r.example/a:1' }, auth: { username: 'u', password: 'secret' }, sandbox_config: sandbox })
  await f.client.call('RemoveImage', { image: { image: 'r.example/a:1' } })
  await f.client.call('ListContainers')
  const inContainer = { namespace: 'n', pod: 'p', container: 'c', containerId: 'x' }
  const web = { namespace: 'shop', pod: 'web', podUid: 'u' }
  const lines = await f.until(9)
  assert.deepEqual(lines, [
    { action: 'ExecSync', caller, ...inContainer, command: ['cat', '/etc/passwd'], result: 'OK' },
    { action: 'Exec', caller, ...inContainer, command: ['sh'], tty: true, result: 'OK' },
    { action: 'Attach', caller, ...inContainer, stdin: true, result: 'NOT_FOUND', error: 'no container with id x' },
    { action: 'PortForward', caller, namespace: 'n', pod: 'p', podSandboxId: 's', ports: [80], result: 'OK' },
    { action: 'RunPodSandbox', caller, ...web, privileged: true, hostNamespaces: [], podSandboxId: 's1', result: 'OK' },
    { action: 'RunPodSandbox', caller, ...web, privileged: false, hostNamespaces: ['network', 'pid'], podSandboxId: 's1', result: 'OK' },
    { action: 'CreateContainer', caller, ...web, podSandboxId: 's', container: 'root', image: 'busybox', privileged: true, containerId: 'c1', result: 'OK' },
    { action: 'PullImage', caller, ...web, image: 'r.example/a:1', imageRef: 'sha256:1', result: 'OK' },
    { action: 'RemoveImage', caller, image: 'r.example/a:1', result: 'OK' },
  ])
  assert.ok(!JSON.stringify(lines).includes('secret'))
})

test('commands can be left out, and long ones are cut', async () => {
  await using without = await fixture({ ExecSync: async () => ({}) }, { commands: false })
  await without.client.call('ExecSync', { container_id: 'x', cmd: ['mysql', '-psecret'] })
  assert.ok(!JSON.stringify(await without.until(1)).includes('mysql'))
  await using cut = await fixture({ ExecSync: async () => ({}) })
  await cut.client.call('ExecSync', { container_id: 'x', cmd: ['a', 'x'.repeat(100_000), 'b'] })
  const [line] = await cut.until(1)
  assert.equal(line?.['commandCut'], true)
  assert.ok(JSON.stringify(line).length < 17_000)
})

test('what a client says of its connection is not believed', async () => {
  await using f = await fixture({ RemoveImage: async () => ({}) })
  const { Metadata } = await import('@grpc/grpc-js')
  const metadata = new Metadata()
  metadata.set('cri-shim-connection', '999')
  await new Promise<void>((resolve, reject) => {
    f.client.client.makeUnaryRequest('/runtime.v1.ImageService/RemoveImage', (request: Buffer) => request, (bytes) => bytes, Buffer.alloc(0), metadata, (error) => (error === null ? resolve() : reject(error)))
  })
  assert.deepEqual((await f.until(1))[0]?.['caller'], caller)
})
