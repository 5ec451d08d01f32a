import assert from 'node:assert/strict'
import { constants } from 'node:http2'
import { once } from 'node:events'
import { connect as connectSocket } from 'node:net'
import { test } from 'node:test'
import { Code, CriError, notFound, unavailable } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import { encoded } from './handlers.ts'
import { encodeResponse, fixture } from './fixtures.ts'

const version = { version: '0.1.0', runtime_name: 'containerd', runtime_version: '2.1.0', runtime_api_version: 'v1' }

test('a unary call answers, is counted and writes one line', async () => {
  await using f = await fixture({ Version: async () => version })
  assert.deepEqual(await f.client.call('Version'), version)
  assert.equal(f.endpoint.inFlight, 0)
  const lines = f.lines.filter((line) => line['method'] === 'Version')
  assert.equal(lines.length, 1)
  assert.equal(lines[0]?.level, 'debug')
  assert.equal(lines[0]['code'], 'OK')
  assert.equal(typeof lines[0]['durationMs'], 'number')
  assert.equal(typeof lines[0]['requestId'], 'string')
  const text = await f.metrics.registry.metrics()
  assert.match(text, /cri_shim_rpc_seconds_count\{method="Version",code="OK"\} 1/)
  assert.match(text, /cri_shim_rpc_in_flight\{method="Version"\} 0/)
})

test('a write logs its ids at info and none of its secrets', async () => {
  await using f = await fixture({
    CreateContainer: async () => ({ container_id: 'c1' }),
    PullImage: async () => ({ image_ref: 'sha256:1' }),
  })
  await f.client.call('CreateContainer', {
    pod_sandbox_id: 's1',
    config: { metadata: { name: 'web', attempt: 2 }, image: { image: 'nginx' }, envs: [{ key: 'PASSWORD', value: Buffer.from('hunter2') }], command: ['hunter2'] },
    sandbox_config: { metadata: { name: 'pod', namespace: 'default', uid: 'u1' } },
  })
  await f.client.call('PullImage', { image: { image: 'registry/x' }, auth: { username: 'me', password: 'hunter2' } })
  const [create, pull] = f.lines
  assert.equal(create?.level, 'info')
  assert.deepEqual(
    [create['podSandboxId'], create['containerId'], create['namespace'], create['pod'], create['uid'], create['container'], create['attempt'], create['image']],
    ['s1', 'c1', 'default', 'pod', 'u1', 'web', 2, 'nginx'],
  )
  assert.deepEqual([pull?.['image'], pull?.['imageRef']], ['registry/x', 'sha256:1'])
  assert.doesNotMatch(JSON.stringify(f.lines), /hunter2/)
})

test('a CriError keeps code and message; its cause is for the log', async () => {
  await using f = await fixture({
    StartContainer: () => Promise.reject(notFound('container "c1" does not exist', { cause: new Error('below', { cause: new Error('at the bottom') }) })),
  })
  const error = await f.client.failure('StartContainer', { container_id: 'c1' })
  assert.equal(error.code, Code.NOT_FOUND)
  assert.equal(error.details, 'container "c1" does not exist')
  assert.equal(f.lines[0]?.level, 'warn')
  assert.deepEqual(f.lines[0]['causes'], ['below', 'at the bottom'])
  assert.equal(f.lines[0]['containerId'], 'c1')
})

test('UNKNOWN is a fault of ours, but not when it is what the kubelet knows a missing registry by', async () => {
  const failures = [new CriError(Code.UNKNOWN, 'containerd did something'), new CriError(Code.UNKNOWN, 'RegistryUnavailable: nobody answers', { reason: 'RegistryUnavailable' })]
  await using f = await fixture({ PullImage: async () => { throw failures.shift() ?? new Error('once too often') } })
  for (const level of ['error', 'warn']) {
    const error = await f.client.failure('PullImage', { image: { image: 'x' } })
    assert.equal(error.code, Code.UNKNOWN)
    assert.equal(f.lines.at(-1)?.level, level)
  }
})

test('any other error is INTERNAL, also one with a code of its own', async () => {
  const foreign: unknown[] = [
    Object.assign(new Error('ENOENT: no such file'), { code: 'ENOENT' }),
    Object.assign(new Error('5 NOT_FOUND: task'), { code: 5, details: 'task' }),
    'a string',
    undefined,
    new Error(''),
  ]
  await using f = await fixture({
    StopContainer: async () => {
      // oxlint-disable-next-line only-throw-error
      throw foreign.shift()
    },
  })
  const messages: string[] = []
  while (foreign.length > 0) {
    const error = await f.client.failure('StopContainer')
    assert.equal(error.code, Code.INTERNAL)
    messages.push(error.details)
  }
  assert.deepEqual(messages, ['ENOENT: no such file', '5 NOT_FOUND: task', 'a string', 'undefined', 'internal error without a message; see the log of cri-shim'])
  assert.ok(f.lines.every((line) => line.level === 'error'))
  assert.match(String(f.lines[0]?.['stack']), /endpoint\.test\.ts/)
})

test('a handler that throws before its first await answers too', async () => {
  await using f = await fixture({
    StopContainer: () => {
      throw notFound('at once')
    },
    StreamImages: () => {
      throw notFound('at once')
    },
  })
  assert.equal((await f.client.failure('StopContainer')).code, Code.NOT_FOUND)
  const [error] = (await once(f.client.stream('StreamImages').resume(), 'error')) as [CriError]
  assert.equal(error.code, Code.NOT_FOUND)
})

test('a message of any characters and any length arrives', async () => {
  const messages = ['zwölf\nlines\t100 % \u0000', 'half a pair \ud800', 'ü'.repeat(20_000), 'x'.repeat(20_000), '\ud800'.repeat(9000)]
  await using f = await fixture({ StopContainer: (_ctx, request) => Promise.reject(notFound(messages[Number(request.container_id)] ?? '')) })
  const got: string[] = []
  for (const index of messages.keys()) got.push((await f.client.failure('StopContainer', { container_id: String(index) })).details)
  assert.equal(got[0], messages[0])
  assert.equal(got[1], 'half a pair \ufffd')
  for (const long of got.slice(2)) {
    assert.ok(long.endsWith('…'))
    const bytes = encodeURI(long).length
    assert.ok(bytes <= 8192 && bytes > 8192 - 20, String(bytes))
  }
})

test('an RPC that is marked unimplemented says why, gate or no gate', async () => {
  await using f = await fixture({}, { gate: () => unavailable('starting') })
  const error = await f.client.failure('CheckpointContainer')
  assert.equal(error.code, Code.UNIMPLEMENTED)
  assert.equal(error.details, 'CheckpointContainer is not implemented: not part of this test')
  const [streamed] = (await once(f.client.stream('StreamImages').resume(), 'error')) as [CriError]
  assert.equal(streamed.code, Code.UNIMPLEMENTED)
})

test('the gate answers for every RPC but Version and Status', async () => {
  const asked: string[] = []
  const gate = (method: string): CriError => {
    asked.push(method)
    return unavailable('containerd is away')
  }
  await using f = await fixture({
    Version: async () => version,
    Status: async () => ({}),
    ListImages: async () => ({}),
    StreamImages: (_ctx, _request, send) => send({}),
  }, { gate })
  await f.client.call('Version')
  await f.client.call('Status')
  const error = await f.client.failure('ListImages')
  assert.equal(error.code, Code.UNAVAILABLE)
  assert.equal(error.details, 'containerd is away')
  const [streamed] = (await once(f.client.stream('StreamImages').resume(), 'error')) as [CriError]
  assert.equal(streamed.code, Code.UNAVAILABLE)
  assert.deepEqual(asked, ['ListImages', 'StreamImages'])
})

function abortedWith(ctx: Ctx): Promise<CriError> {
  return new Promise((resolve) => ctx.signal.addEventListener('abort', () => resolve(ctx.signal.reason as CriError), { once: true }))
}

test('a cancelled call aborts its signal with CANCELLED', async () => {
  const started = Promise.withResolvers<void>()
  const reason = Promise.withResolvers<CriError>()
  await using f = await fixture({
    StopContainer: async (ctx) => {
      started.resolve()
      const aborted = await abortedWith(ctx)
      reason.resolve(aborted)
      throw new DOMException('This operation was aborted', 'AbortError')
    },
  })
  const call = f.client.start('StopContainer', { container_id: 'c1' })
  const failed = assert.rejects(call.answer, { code: Code.CANCELLED })
  await started.promise
  call.cancel()
  await failed
  assert.equal((await reason.promise).code, Code.CANCELLED)
  await f.endpoint.close({ graceMs: 5000 })
  assert.equal(f.lines[0]?.['code'], 'CANCELLED')
  assert.equal(f.lines[0]['error'], 'StopContainer: cancelled by the client')
})

test('a call whose work is done after its client has left is not recorded as OK', async () => {
  const started = Promise.withResolvers<void>()
  await using f = await fixture({
    StopContainer: async (ctx) => {
      started.resolve()
      await abortedWith(ctx)
      return {}
    },
  })
  const call = f.client.start('StopContainer')
  const failed = assert.rejects(call.answer, { code: Code.CANCELLED })
  await started.promise
  call.cancel()
  await failed
  await f.endpoint.close({ graceMs: 5000 })
  assert.equal(f.lines[0]?.['code'], 'CANCELLED')
})

test('a deadline aborts the signal with DEADLINE_EXCEEDED', async () => {
  const reason = Promise.withResolvers<CriError>()
  await using f = await fixture({
    StopContainer: async (ctx) => {
      reason.resolve(await abortedWith(ctx))
      ctx.signal.throwIfAborted()
      return {}
    },
  })
  const error = await f.client.failure('StopContainer', {}, { deadline: Date.now() + 100 })
  assert.equal(error.code, Code.DEADLINE_EXCEEDED)
  assert.equal((await reason.promise).code, Code.DEADLINE_EXCEEDED)
  await f.endpoint.close({ graceMs: 5000 })
  assert.equal(f.lines[0]?.['code'], 'DEADLINE_EXCEEDED')
})

test('a deadline beyond what a timer can wait does not end the call', async () => {
  await using f = await fixture({ StopContainer: async () => ({}) })
  for (const days of [20, 25, 30, 49, 50, 75, 365]) {
    assert.deepEqual(await f.client.call('StopContainer', {}, { deadline: Date.now() + days * 86_400_000 }), {})
  }
})

test('an encoded answer goes out as it is', async () => {
  const one = encodeResponse('ListContainers', { containers: [{ id: 'a' }] })
  const two = encodeResponse('ListContainers', { containers: [{ id: 'b' }] })
  await using f = await fixture({
    ListContainers: async () => encoded(Buffer.concat([one, two])),
    StreamContainers: async (_ctx, _request, send) => {
      await send(encoded(encodeResponse('StreamContainers', {})))
      await send({})
    },
  })
  assert.deepEqual((await f.client.call('ListContainers')).containers.map(({ id }) => id), ['a', 'b'])
  assert.equal((await f.client.stream('StreamContainers').toArray()).length, 2)
})

test('an answer that cannot be encoded, or is too large, is an error with a reason', async () => {
  await using f = await fixture({
    ListContainers: async () => ({ containers: [{ id: 'x'.repeat(3000) }] }),
    ContainerStatus: async () => ({ info: new Map([['a', 'b']]) as never, status: 7 as never }),
  }, { maxMessageBytes: 2000 })
  const large = await f.client.failure('ListContainers')
  assert.equal(large.code, Code.RESOURCE_EXHAUSTED)
  assert.match(large.details, /3\d{3} bytes, more than the limit of 2000/)
  const broken = await f.client.failure('ContainerStatus')
  assert.equal(broken.code, Code.INTERNAL)
  assert.match(broken.details, /ContainerStatus: the answer cannot be encoded/)
})

test('requests and answers of more than 4 MiB pass', async () => {
  const id = 'x'.repeat(8 << 20)
  await using f = await fixture({ ExecSync: async (_ctx, request) => ({ stdout: Buffer.from(request.container_id) }) })
  const answer = await f.client.call('ExecSync', { container_id: id })
  assert.equal(answer.stdout.length, id.length)
})

test('a stream waits for a slow reader and delivers everything', async () => {
  const total = 2000
  const image = { images: [{ id: 'x'.repeat(10_000) }] }
  let sent = 0
  const stalled = Promise.withResolvers<void>()
  await using f = await fixture({
    StreamImages: async (_ctx, _request, send) => {
      for (let i = 0; i < total; i++) {
        const sending = send(image)
        let done = false
        void sending.then(() => (done = true))
        // Microtasks settle a send that had room; what is still open after a turn of the event loop waits for the reader.
        await new Promise(setImmediate)
        if (!done) stalled.resolve()
        await sending
        sent++
      }
    },
  })
  const stream = f.client.stream('StreamImages')
  // grpc-js holds its connection back only once it has handed out a message.
  await once(stream, 'data')
  stream.pause()
  await stalled.promise
  assert.ok(sent < total / 2, `${sent} messages left although nobody reads`)
  assert.equal((await stream.toArray()).length, total - 1)
  assert.equal(sent, total)
})

test('a stream whose reader leaves ends its producer', async () => {
  const ended = Promise.withResolvers<unknown>()
  await using f = await fixture({
    GetContainerEvents: async (_ctx, _request, send) => {
      try {
        for (;;) {
          await send({ container_id: 'x'.repeat(100_000) })
          await new Promise(setImmediate)
        }
      } catch (error) {
        ended.resolve(error)
        throw error
      }
    },
  })
  const stream = f.client.stream('GetContainerEvents')
  stream.on('error', () => undefined)
  await once(stream, 'data')
  stream.pause()
  stream.cancel()
  assert.equal(((await ended.promise) as CriError).code, Code.CANCELLED)
  await f.endpoint.close({ graceMs: 5000 })
  assert.equal(f.lines[0]?.['code'], 'CANCELLED')
  assert.equal(f.lines[0].level, 'debug')
})

test('an error in the middle of a stream arrives after what was sent', async () => {
  await using f = await fixture({
    StreamImages: async (_ctx, _request, send) => {
      await send({})
      await send({})
      throw notFound('then it broke')
    },
  })
  let messages = 0
  const stream = f.client.stream('StreamImages').on('data', () => messages++)
  const [error] = (await once(stream, 'error')) as [{ code: number; details: string }]
  assert.deepEqual([messages, error.code, error.details], [2, Code.NOT_FOUND, 'then it broke'])
})

test('close lets running calls end, refuses new ones and ends endless streams', async () => {
  const started = Promise.withResolvers<void>()
  const streaming = Promise.withResolvers<void>()
  const proceed = Promise.withResolvers<void>()
  await using f = await fixture({
    StopContainer: async (ctx) => {
      started.resolve()
      await proceed.promise
      assert.equal(ctx.signal.aborted, false)
      return {}
    },
    GetContainerEvents: async (ctx) => {
      streaming.resolve()
      throw await abortedWith(ctx)
    },
  })
  const running = f.client.call('StopContainer')
  const events = once(f.client.stream('GetContainerEvents').resume(), 'error')
  await Promise.all([started.promise, streaming.promise])
  const closed = f.endpoint.close({ graceMs: 60_000 })
  const [ended] = (await events) as [{ code: number }]
  assert.equal(ended.code, Code.UNAVAILABLE)
  assert.equal((await f.client.failure('Version')).code, Code.UNAVAILABLE)
  proceed.resolve()
  assert.deepEqual(await running, {})
  await closed
})

test('close aborts calls after the grace time and waits for their undo', async () => {
  const started = Promise.withResolvers<void>()
  let undone = false
  await using f = await fixture({
    RunPodSandbox: async (ctx) => {
      started.resolve()
      const reason = await abortedWith(ctx)
      await new Promise(setImmediate)
      undone = true
      throw reason
    },
  })
  const failure = f.client.failure('RunPodSandbox')
  await started.promise
  await f.endpoint.close({ graceMs: 10, undoMs: 60_000 })
  assert.equal(undone, true)
  const error = await failure
  assert.equal(error.code, Code.UNAVAILABLE)
  assert.match(error.details, /shutting down/)
})

test('close leaves a call behind that does not end', async () => {
  const started = Promise.withResolvers<void>()
  const never = Promise.withResolvers<never>()
  await using f = await fixture({
    RunPodSandbox: () => {
      started.resolve()
      return never.promise
    },
  })
  const failure = f.client.failure('RunPodSandbox')
  await started.promise
  await f.endpoint.close({ graceMs: 1, undoMs: 1 })
  assert.ok([Code.UNAVAILABLE, Code.CANCELLED].includes((await failure).code as never))
  assert.match(String(f.lines.find((line) => line.level === 'error')?.['calls']), /RunPodSandbox/)
})

test('connections that say nothing, or nonsense, hurt nobody and do not hold up close', async () => {
  await using f = await fixture({ Version: async () => version })
  const silent = connectSocket(f.endpoint.path)
  await once(silent, 'connect')
  const nonsense = connectSocket(f.endpoint.path).on('error', () => undefined)
  nonsense.end('GET / HTTP/1.1\r\n\r\n'.repeat(100))
  await once(nonsense.resume(), 'close')
  assert.deepEqual(await f.client.call('Version'), version)
  const closed = once(silent.resume(), 'close')
  await f.endpoint.close({ graceMs: 0 })
  await closed
})

function frame(type: number, flags: number, streamId: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head.writeUInt8(type, 3)
  head.writeUInt8(flags, 4)
  head.writeUInt32BE(streamId, 5)
  return Buffer.concat([head, payload])
}

/** A whole call in HTTP/2 frames. */
function callFrames(method: string, streamId: number): Buffer {
  const headers = { ':method': 'POST', ':scheme': 'http', ':path': `/runtime.v1.RuntimeService/${method}`, ':authority': 'localhost', 'content-type': 'application/grpc', te: 'trailers' }
  const literal = (text: string): Buffer => Buffer.concat([Buffer.from([text.length]), Buffer.from(text)])
  const block = Buffer.concat(Object.entries(headers).flatMap(([name, value]) => [Buffer.from([0]), literal(name), literal(value)]))
  return Buffer.concat([frame(1, 4, streamId, block), frame(0, 1, streamId, Buffer.alloc(5))])
}

/** A StopContainer call and its cancellation, as a client that is in a hurry sends them: in one piece. */
function cancelledCall(streamId: number): Buffer {
  const cancel = Buffer.alloc(4)
  cancel.writeUInt32BE(constants.NGHTTP2_CANCEL)
  return Buffer.concat([callFrames('StopContainer', streamId), frame(3, 0, streamId, cancel)])
}

test('a client that leaves before its request was read does not leave work without a signal behind', async () => {
  let begun = 0
  let aborted = 0
  const introduced = Promise.withResolvers<void>()
  await using f = await fixture({
    Version: async () => {
      introduced.resolve()
      return version
    },
    StopContainer: async (ctx) => {
      begun++
      if (!ctx.signal.aborted) await abortedWith(ctx)
      aborted++
      return {}
    },
  })
  const socket = connectSocket(f.endpoint.path).on('error', () => undefined)
  await once(socket, 'connect')
  const settings = [frame(4, 0, 0, Buffer.alloc(0)), frame(4, 1, 0, Buffer.alloc(0))]
  socket.write(Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), ...settings, callFrames('Version', 1)]))
  await introduced.promise
  const calls = Array.from({ length: 50 }, (_, index) => cancelledCall(2 * index + 3))
  socket.write(Buffer.concat(calls))
  await once(socket, 'data')
  await f.client.call('Version')
  assert.ok(begun > 0)
  socket.destroy()
  await f.endpoint.close({ graceMs: 2000, undoMs: 1 })
  assert.equal(f.endpoint.inFlight, 0)
  assert.equal(aborted, begun)
})
