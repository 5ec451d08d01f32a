import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, get, type IncomingHttpHeaders, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { createLogger } from '../logger.ts'
import { createMetrics, type Metrics } from '../metrics.ts'
import { SpanKind } from '../tracing.ts'
import { samplerOf } from './sampler.ts'
import { type TracingFileSettings, tracingSettings } from './settings.ts'
import { OtlpTracer } from './tracer.ts'

const nothing: TracingFileSettings = { endpoint: '', headers: {}, serviceName: '', sampler: '', samplerArg: '', timeoutMs: 0 }
const noCaller = { traceparent: undefined, tracestate: undefined }

interface ReceivedSpan {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId: string
  readonly traceState: string
  readonly name: string
  readonly kind: number
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly attributes: readonly { readonly key: string; readonly value: Record<string, unknown> }[]
  readonly status: { readonly code?: number; readonly message?: string }
}

interface Received {
  readonly headers: IncomingHttpHeaders
  readonly body: { readonly resourceSpans?: readonly { readonly resource: { readonly attributes: readonly object[] }; readonly scopeSpans: readonly { readonly spans: readonly ReceivedSpan[] }[] }[] }
}

/** A collector that answers what the test says. */
async function collector(statuses: number[] = [], hold?: Promise<void>): Promise<AsyncDisposable & { readonly url: string; readonly received: Received[]; spans(): ReceivedSpan[] }> {
  const received: Received[] = []
  const server: Server = createServer((request, response) => {
    void (async () => {
      const chunks = await request.toArray()
      received.push({ headers: request.headers, body: JSON.parse(Buffer.concat(chunks).toString() || '{}') as Received['body'] })
      await hold
      response.writeHead(statuses.shift() ?? 200, { 'content-type': 'application/json' }).end('{}')
    })()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, received,
    spans: () => received.flatMap(({ body }) => (body.resourceSpans ?? []).flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans))),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

function tracerTo(url: string, env: Record<string, string> = {}, more: { readonly maxQueued?: number; readonly delayMs?: number } = {}): { readonly tracer: OtlpTracer; readonly metrics: Metrics; readonly lines: string[] } {
  const settings = tracingSettings(nothing, { OTEL_EXPORTER_OTLP_ENDPOINT: url, ...env })
  assert.ok(settings)
  const metrics = createMetrics()
  const lines: string[] = []
  const log = createLogger('info', { write: (line) => void lines.push(line) })
  return { tracer: new OtlpTracer({ settings, log, metrics, ...more }), metrics, lines }
}

const counted = async (metrics: Metrics, result: string): Promise<number> => Number(new RegExp(`cri_shim_tracing_spans_total\\{result="${result}"\\} (\\d+)`).exec(await metrics.registry.metrics())?.[1] ?? 0)

it('sends spans that know their parents, across asynchronous work side by side', async () => {
  await using to = await collector()
  const { tracer, metrics } = tracerTo(to.url, { OTEL_RESOURCE_ATTRIBUTES: 'node.name=n%201,service.name=other', OTEL_SERVICE_NAME: 'mine', OTEL_EXPORTER_OTLP_HEADERS: 'authorization=Bearer%20x' })
  const root = tracer.request('RunPodSandbox', { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', tracestate: 'a=1' }, { 'cri.pod': 'p', attempt: 2, long: 'x'.repeat(5000) })
  await tracer.within(root, async () => Promise.all(['one', 'two'].map(async (name) => {
    const step = tracer.child(name, SpanKind.internal)
    assert.ok(step)
    await tracer.within(step, async () => {
      await turn()
      const call = tracer.child(`call of ${name}`, SpanKind.client)
      assert.equal(call?.headers.tracestate, 'a=1')
      assert.match(call.headers.traceparent, /^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$/)
      await turn()
      call.end(name === 'two' ? 'refused' : undefined)
    })
    step.end()
  })))
  root.end()
  root.end()
  assert.equal(tracer.child('background', SpanKind.internal), undefined)
  await tracer.close(5000)
  const spans = to.spans()
  const byName = (name: string): ReceivedSpan => spans.find((span) => span.name === name) ?? assert.fail(name)
  assert.equal(spans.length, 5)
  assert.ok(spans.every(({ traceId }) => traceId === '0af7651916cd43dd8448eb211c80319c'))
  assert.equal(byName('RunPodSandbox').parentSpanId, 'b7ad6b7169203331')
  assert.equal(byName('RunPodSandbox').kind, 2)
  for (const name of ['one', 'two']) {
    assert.equal(byName(name).parentSpanId, byName('RunPodSandbox').spanId)
    assert.equal(byName(`call of ${name}`).parentSpanId, byName(name).spanId)
  }
  assert.deepEqual(byName('call of two').status, { code: 2, message: 'refused' })
  assert.deepEqual(byName('RunPodSandbox').attributes.slice(0, 2), [{ key: 'cri.pod', value: { stringValue: 'p' } }, { key: 'attempt', value: { intValue: '2' } }])
  assert.equal(String(byName('RunPodSandbox').attributes[2]?.value['stringValue']).length, 1024)
  assert.ok(BigInt(byName('one').startTimeUnixNano) >= BigInt(byName('RunPodSandbox').startTimeUnixNano))
  assert.ok(BigInt(byName('one').endTimeUnixNano) <= BigInt(byName('RunPodSandbox').endTimeUnixNano))
  const [{ headers, body } = assert.fail('nothing sent')] = to.received
  assert.equal(headers.authorization, 'Bearer x')
  assert.equal(headers['traceparent'], undefined)
  assert.deepEqual(body.resourceSpans?.[0]?.resource.attributes, [{ key: 'service.name', value: { stringValue: 'mine' } }, { key: 'node.name', value: { stringValue: 'n 1' } }])
  assert.equal(await counted(metrics, 'exported'), 5)
})

it('has a span for each HTTP request of traced work, and none for its own', async () => {
  await using to = await collector()
  await using registry = await collector([404])
  const { tracer } = tracerTo(to.url, {}, { delayMs: 1 })
  const root = tracer.request('PullImage', noCaller, {})
  await tracer.within(root, async () => {
    const [response] = await once(get(`${registry.url}/v2/x/manifests/latest?signature=secret`), 'response') as [NodeJS.ReadableStream]
    response.resume()
    await once(response, 'end')
    // Within traced work: the timer that sends must not be part of it.
    tracer.child('step', SpanKind.internal)?.end()
  })
  root.end()
  while (to.spans().length < 3) await turn()
  await tracer.close(5000)
  assert.deepEqual(to.spans().map(({ name }) => name).sort(), ['HTTP GET', 'PullImage', 'step'])
  const http = to.spans().find(({ name }) => name === 'HTTP GET')
  assert.equal(http?.status.message, 'HTTP status 404')
  assert.ok(!JSON.stringify(http).includes('secret'))
  assert.equal(registry.received[0]?.headers['traceparent'], undefined, 'a registry is told nothing')
})

it('follows the caller, or its own sampler', async () => {
  await using to = await collector()
  const unsampled = { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00', tracestate: undefined }
  const { tracer } = tracerTo(to.url)
  const span = tracer.request('quiet', unsampled, {})
  assert.match(span.headers.traceparent, /^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00$/)
  tracer.within(span, () => tracer.child('quiet too', SpanKind.internal))?.end()
  span.end()
  tracer.request('new', { traceparent: 'nonsense', tracestate: undefined }, {}).end()
  tracer.request('zero', { traceparent: '00-00000000000000000000000000000000-b7ad6b7169203331-01', tracestate: undefined }, {}).end()
  await tracer.close(5000)
  assert.deepEqual(to.spans().map(({ name, parentSpanId }) => [name, parentSpanId]), [['new', ''], ['zero', '']])
  const half = samplerOf('traceidratio', '0.5')
  assert.equal(half.followsCaller, false)
  assert.equal(half.root('00000000000000000000000000000001'), true)
  assert.equal(half.root('000000000000000000ffffffffffffff'), false)
  assert.equal(samplerOf('parentbased_traceidratio', '').root('000000000000000000ffffffffffffff'), true)
  assert.equal(samplerOf('traceidratio', '0').root('00000000000000000000000000000000'), false)
  assert.equal(samplerOf('parentbased_always_off', '').root(''), false)
  assert.throws(() => samplerOf('jaeger_remote', ''), /one of always_on/)
  assert.throws(() => samplerOf('traceidratio', '2'), /between 0 and 1/)
})

it('tries again what the collector could not take, and counts what is lost; a failure is logged once', async () => {
  await using to = await collector([503, 200, 400, 400, 200])
  const { tracer, metrics, lines } = tracerTo(to.url, {}, { delayMs: 1 })
  for (const name of ['retried', 'refused', 'refused again', 'taken']) {
    const before = await counted(metrics, 'exported') + await counted(metrics, 'failed')
    tracer.request(name, noCaller, {}).end()
    while (await counted(metrics, 'exported') + await counted(metrics, 'failed') === before) await turn()
  }
  await tracer.close(5000)
  assert.equal(await counted(metrics, 'exported'), 2)
  assert.equal(await counted(metrics, 'failed'), 2)
  assert.equal(lines.filter((line) => line.includes('cannot be sent')).length, 1)
  assert.equal(lines.filter((line) => line.includes('takes spans again')).length, 1)
})

it('bounds what waits, and leaves a collector that hangs behind when the service stops', async () => {
  const hold = Promise.withResolvers<void>()
  await using to = await collector([], hold.promise)
  const { tracer, metrics } = tracerTo(to.url, {}, { maxQueued: 10, delayMs: 1 })
  tracer.request('first', noCaller, {}).end()
  while (to.received.length === 0) await turn()
  for (let index = 0; index < 20; index++) tracer.request('more', noCaller, {}).end()
  assert.equal(await counted(metrics, 'dropped'), 11)
  await tracer.close(20)
  assert.equal(await counted(metrics, 'exported'), 0)
  hold.resolve()
})

it('takes its settings from the file, then from the environment', () => {
  const env = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://e:4318/', OTEL_EXPORTER_OTLP_TIMEOUT: '250', OTEL_TRACES_SAMPLER: 'traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.25' }
  assert.equal(tracingSettings(nothing, {}), undefined)
  assert.equal(tracingSettings(nothing, { ...env, OTEL_SDK_DISABLED: 'TRUE' }), undefined)
  assert.equal(tracingSettings(nothing, { ...env, OTEL_TRACES_EXPORTER: 'none' }), undefined)
  const of = (file: Partial<TracingFileSettings>, more: Record<string, string> = {}): ReturnType<typeof tracingSettings> & object => tracingSettings({ ...nothing, ...file }, { ...env, ...more }) ?? assert.fail('off')
  assert.equal(of({}).url.href, 'http://e:4318/v1/traces')
  assert.equal(of({}, { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'https://t/custom' }).url.href, 'https://t/custom')
  assert.equal(of({ endpoint: 'http://f:1/base' }, { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'https://t/custom' }).url.href, 'http://f:1/base/v1/traces')
  assert.deepEqual([of({}).timeoutMs, of({ timeoutMs: 7 }).timeoutMs, of({}).sampler, of({}).samplerArg], [250, 7, 'traceidratio', '0.25'])
  assert.deepEqual([of({ sampler: 'always_on' }).sampler, of({ sampler: 'always_on' }).samplerArg], ['always_on', ''])
  assert.deepEqual(of({ headers: { a: '2' } }, { OTEL_EXPORTER_OTLP_HEADERS: 'a=1,b=x%2Cy' }).headers, { a: '2', b: 'x,y' })
  assert.deepEqual(of({}, { OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf' }).remarks, ['OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: JSON is sent, to the same port'])
  assert.throws(() => of({}, { OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' }), /4318.*http\/json/)
  assert.throws(() => of({}, { OTEL_EXPORTER_OTLP_HEADERS: 'secret' }), (error: Error) => !error.message.includes('secret') && error.message.includes('OTEL_EXPORTER_OTLP_HEADERS'))
  assert.throws(() => of({ endpoint: 'ftp://user:pw@x' }), (error: Error) => !error.message.includes('pw'))
})
