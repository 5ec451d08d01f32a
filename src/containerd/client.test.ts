import assert from 'node:assert/strict'
import { mkdtempDisposable } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { type Metadata, Server, ServerCredentials, status } from '@grpc/grpc-js'
import { Code, CriError } from '../errors/cri-error.ts'
import { containerdProtos, serviceDefinition } from '../generated/protos.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { createMetrics } from '../observability/metrics.ts'
import type { Span, Tracer } from '../observability/tracing.ts'
import { ContainerdClient } from './client.ts'

const version = 'containerd.services.version.v1.Version'

/** A tracer whose spans say what becomes of them. */
function recordingTracer(current: boolean): Tracer & { readonly ended: (readonly [string, string | undefined])[] } {
  const ended: (readonly [string, string | undefined])[] = []
  const span = (name: string): Span => ({ headers: { traceparent: `parent-of-${name}`, tracestate: 'a=1' }, set: () => undefined, end: (failure) => void ended.push([name, failure]) })
  return { ended, request: (name) => span(name), child: (name) => (current ? span(name) : undefined), within: (_span, work) => work() }
}

it('a call has a span when it belongs to traced work, and containerd is told of it', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-client-'))
  const address = `unix://${dir.path}/containerd.sock`
  const received: Metadata[] = []
  const server = new Server()
  server.addService(serviceDefinition(containerdProtos(), version), {
    Version: (call: { readonly metadata: Metadata }, answer: (error: object | null, value?: object) => void) => {
      received.push(call.metadata)
      if (received.length === 2) answer({ code: status.INTERNAL, details: 'broken' })
      else answer(null, { version: '1.7.0', revision: '' })
    },
  })
  await new Promise<void>((resolve, reject) => { server.bindAsync(address, ServerCredentials.createInsecure(), (error) => (error === null ? resolve() : reject(error))) })
  const ctx = backgroundCtx(createLogger('fatal'), 'test')
  const traced = recordingTracer(true)
  const clients = [traced, recordingTracer(false), undefined].map((tracer) => new ContainerdClient({ address, metrics: createMetrics(), tracer }))
  try {
    const ask = async (client: ContainerdClient | undefined): Promise<unknown> => client?.call(ctx, version, 'Version', {}, 'version')
    await ask(clients[0])
    await assert.rejects(ask(clients[0]), /broken/)
    await ask(clients[1])
    await ask(clients[2])
    assert.deepEqual(received.map((metadata) => [metadata.get('containerd-namespace')[0], metadata.get('traceparent')[0], metadata.get('tracestate')[0]]), [
      ['k8s.io', 'parent-of-containerd Version.Version', 'a=1'], ['k8s.io', 'parent-of-containerd Version.Version', 'a=1'], ['k8s.io', undefined, undefined], ['k8s.io', undefined, undefined],
    ])
    assert.deepEqual(traced.ended, [['containerd Version.Version', undefined], ['containerd Version.Version', 'broken']])
  } finally {
    for (const client of clients) client.close()
    server.forceShutdown()
  }
})

it('tells a containerd that is away from one that says that something of its own is', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-client-'))
  const address = `unix://${dir.path}/containerd.sock`
  const server = new Server()
  let details = ''
  server.addService(serviceDefinition(containerdProtos(), version), {
    Version: (_call: object, answer: (error: object) => void) => answer({ code: status.UNAVAILABLE, details }),
  })
  await new Promise<void>((resolve, reject) => { server.bindAsync(address, ServerCredentials.createInsecure(), (error) => (error === null ? resolve() : reject(error))) })
  const client = new ContainerdClient({ address, metrics: createMetrics() })
  const ask = async (): Promise<unknown> => client.call(backgroundCtx(createLogger('fatal'), 'test'), version, 'Version', {}, 'version').then(() => undefined, (error: unknown) => error instanceof CriError && [error.code, error.reason, error.message])
  try {
    // Before 2.0, and since.
    for (const said of ['connection error: connection refused: unavailable', 'connection error: connection refused']) {
      details = said
      assert.deepEqual(await ask(), [Code.UNAVAILABLE, 'UNAVAILABLE', `containerd Version.Version (version): ${said}`])
    }
    server.forceShutdown()
    const [code, reason, message] = await ask() as [Code, string, string]
    assert.deepEqual([code, reason], [Code.UNAVAILABLE, 'ContainerdUnavailable'])
    assert.match(message, /^containerd does not answer on .*; is it running\?$/)
    assert.doesNotMatch(message, /Resolution note/)
  } finally {
    client.close()
    server.forceShutdown()
  }
})
