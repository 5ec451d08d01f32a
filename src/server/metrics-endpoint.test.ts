import assert from 'node:assert/strict'
import { once } from 'node:events'
import { lstatSync } from 'node:fs'
import { type IncomingMessage, request } from 'node:http'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { createMetrics } from '../observability/metrics.ts'
import { type MetricsEndpointDeps, startMetricsEndpoint, tcpAddress } from './metrics-endpoint.ts'
import { LogCapture, temporaryDirectory } from './fixtures.ts'

interface Answer {
  readonly status: number | undefined
  readonly body: string
}

async function get(where: { readonly socketPath: string } | { readonly host: string; readonly port: number }, path: string, method = 'GET'): Promise<Answer> {
  const [response] = (await once(request({ ...where, path, method, agent: false }).end(), 'response')) as [IncomingMessage]
  return { status: response.statusCode, body: Buffer.concat(await response.toArray()).toString() }
}

const depsOf = (notReady: () => string | undefined = () => undefined): MetricsEndpointDeps & { capture: LogCapture } => {
  const capture = new LogCapture()
  return { capture, log: capture.log, metrics: createMetrics(), notReady }
}

test('metrics, health and readiness over TCP', async () => {
  let reason: string | undefined = 'containerd is away'
  const deps = depsOf(() => reason)
  deps.metrics.rpcSeconds.observe({ method: 'Version', code: 'OK' }, 0.001)
  const endpoint = await startMetricsEndpoint('127.0.0.1:0', deps)
  assert.ok(endpoint !== undefined)
  try {
    const where = tcpAddress(endpoint.address)
    assert.notEqual(where.port, 0)
    const metrics = await get(where, '/metrics')
    assert.equal(metrics.status, 200)
    for (const name of ['cri_shim_rpc_seconds_count{method="Version",code="OK"} 1', 'process_resident_memory_bytes ', 'nodejs_eventloop_lag_p99_seconds ']) assert.ok(metrics.body.includes(name), name)
    assert.deepEqual(await get(where, '/healthz?verbose'), { status: 200, body: 'ok\n' })
    assert.deepEqual(await get(where, '/readyz'), { status: 503, body: 'containerd is away\n' })
    reason = undefined
    assert.deepEqual(await get(where, '/readyz'), { status: 200, body: 'ok\n' })
    assert.deepEqual(await get(where, '/healthz', 'HEAD'), { status: 200, body: '' })
    assert.equal((await get(where, '/healthz', 'POST')).status, 405)
    assert.equal((await get(where, '/')).status, 404)
    assert.deepEqual(deps.capture.lines, [])

    await assert.rejects(startMetricsEndpoint(endpoint.address, depsOf()), { code: Code.FAILED_PRECONDITION, message: /--metrics-address: cannot listen on 127.0.0.1:\d+: .*EADDRINUSE.*choose another port/ })
  } finally {
    await endpoint.close()
  }
})

test('healthz says what is wrong', async () => {
  const endpoint = await startMetricsEndpoint('127.0.0.1:0', { ...depsOf(), problem: async () => 'containerd does not answer' })
  assert.ok(endpoint !== undefined)
  try {
    assert.deepEqual(await get(tcpAddress(endpoint.address), '/healthz'), { status: 503, body: 'containerd does not answer\n' })
  } finally {
    await endpoint.close()
  }
})

test('over a unix socket, private as that of CRI', async () => {
  using directory = temporaryDirectory()
  const path = `${directory.path}/m/metrics.sock`
  const endpoint = await startMetricsEndpoint(`unix://${path}`, depsOf())
  assert.equal(lstatSync(path).mode & 0o777, 0o600)
  assert.equal((await get({ socketPath: path }, '/metrics')).status, 200)
  await assert.rejects(startMetricsEndpoint(`unix://${path}`, depsOf()), { code: Code.FAILED_PRECONDITION, message: /listens there already.*--metrics-address/ })
  await endpoint?.close()
})

test('no address is no endpoint, a wrong one an error, a public one a warning', async () => {
  assert.equal(await startMetricsEndpoint('', depsOf()), undefined)
  for (const address of ['9091', ':9091', 'localhost', 'localhost:', 'localhost:66000', '::1:9091', '[localhost]:1', 'http://x:1', 'a b:1', 'unix:relative']) {
    await assert.rejects(startMetricsEndpoint(address, depsOf()), { code: Code.INVALID_ARGUMENT, message: /^--metrics-address: / }, address)
  }
  assert.deepEqual(tcpAddress('[::1]:9091'), { host: '::1', port: 9091 })
  const deps = depsOf()
  // An address of the documentation's range: nobody has it, so nothing is opened to the network here.
  await assert.rejects(startMetricsEndpoint('192.0.2.1:9091', deps), { code: Code.FAILED_PRECONDITION })
  assert.equal(deps.capture.lines[0]?.level, 'warn')
})

test('listings are JSON under their paths', async () => {
  let asked = 0
  const endpoint = await startMetricsEndpoint('127.0.0.1:0', { ...depsOf(), listings: { '/pulls': () => [{ image: 'x', number: ++asked }] } })
  assert.ok(endpoint !== undefined)
  try {
    const where = tcpAddress(endpoint.address)
    for (const number of [1, 2]) {
      const { status, body } = await get(where, '/pulls?pretty')
      assert.equal(status, 200)
      assert.deepEqual(JSON.parse(body), [{ image: 'x', number }])
    }
    assert.match((await get(where, '/toString')).body, /^there are \/metrics, \/healthz, \/pulls and \/readyz$/m)
  } finally {
    await endpoint.close()
  }
})
