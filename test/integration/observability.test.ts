import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtempDisposable, readFile, rename } from 'node:fs/promises'
import { createServer, type IncomingMessage, request, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Metadata } from '@grpc/grpc-js'
import { WebSocket } from 'ws'
import { parse } from 'yaml'
import { busyboxImage } from '../images/catalog.ts'
import { eventually, type PrivateNode, podConfig, pull, removePods, runPod, skipUnlessRoot, startContainer, startNode } from './private-node.ts'

interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId: string
  readonly name: string
  readonly kind: number
  readonly status: { readonly code?: number; readonly message?: string }
}

interface ExportRequest {
  readonly resourceSpans: readonly { readonly scopeSpans: readonly { readonly spans: readonly Span[] }[] }[]
}

const deploy = join(import.meta.dirname, '../../deploy')
const traceId = '0af7651916cd43dd8448eb211c80319c'

/** What the metrics address answers. */
async function get(socketPath: string, path: string): Promise<{ readonly status: number | undefined; readonly body: string }> {
  const [response] = await once(request({ socketPath, path, agent: false }).end(), 'response') as [IncomingMessage]
  return { status: response.statusCode, body: Buffer.concat(await response.toArray()).toString() }
}

/** The expressions of the alert rules and of the dashboard, with the template variables of the latter filled in. */
async function expressions(): Promise<{ readonly where: string; readonly expr: string }[]> {
  const rules = parse(await readFile(join(deploy, 'prometheus/cri-shim-rules.yaml'), 'utf8')) as { groups: { rules: { alert: string; expr: string }[] }[] }
  const dashboard = JSON.parse(await readFile(join(deploy, 'grafana/cri-shim.json'), 'utf8')) as { panels: { title: string; targets?: { expr: string }[] }[] }
  return [
    ...rules.groups.flatMap((group) => group.rules.map(({ alert, expr }) => ({ where: alert, expr }))),
    ...dashboard.panels.flatMap(({ title, targets = [] }) => targets.map(({ expr }) => ({ where: title, expr: expr.replaceAll('$__rate_interval', '5m') }))),
  ]
}

/** The names of a family as Prometheus stores its samples. */
function samplesOf(text: string): Map<string, Set<string>> {
  const samples = new Map<string, Set<string>>()
  for (const [, name = '', type] of text.matchAll(/^# TYPE (\S+) (\S+)$/gm)) for (const each of type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name]) samples.set(each, new Set())
  for (const [, name = '', labels = ''] of text.matchAll(/^([a-z_]\w*)(?:\{(.*)\})? /gm)) for (const [, label = ''] of labels.matchAll(/(\w+)="/g)) samples.get(name)?.add(label)
  return samples
}

describe('traces, audit log, metrics', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let collector: Server
  let directory: Awaited<ReturnType<typeof mkdtempDisposable>>
  const metrics = (): string => join(directory.path, 'metrics.sock')
  const spans: Span[] = []
  const auditLog = (): string => join(node.dir, 'audit.log')
  const audited = async (): Promise<Record<string, unknown>[]> => (await readFile(auditLog(), 'utf8')).split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Record<string, unknown>)
  const span = async (name: string): Promise<Span> => eventually(`the span ${name}`, async () => spans.find((each) => each.name === name))

  before(async () => {
    directory = await mkdtempDisposable(join(tmpdir(), 'cri-shim-metrics-'))
    collector = createServer((incoming, response) => {
      void incoming.toArray().then((chunks) => {
        const body = JSON.parse(Buffer.concat(chunks).toString()) as ExportRequest
        spans.push(...body.resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap((scope) => scope.spans)))
        response.writeHead(200, { 'content-type': 'application/json' }).end('{}')
      })
    }).listen(0, '127.0.0.1')
    await once(collector, 'listening')
    const endpoint = `http://127.0.0.1:${(collector.address() as AddressInfo).port}`
    node = await startNode({
      metricsAddress: `unix://${metrics()}`,
      editConfig: async (toml, dir) => `${toml}\n[plugins."io.cri-shim.v1".tracing]\nendpoint = "${endpoint}"\nsampler = "parentbased_always_off"\n[plugins."io.cri-shim.v1".audit]\nlog = "${dir}/audit.log"\n`,
    })
  })
  after(async () => {
    const left = await node.stop()
    collector.closeAllConnections()
    collector.close()
    await directory.remove()
    assert.deepEqual(left, [])
  })

  it('a call is traced with its steps, what containerd and the registry are asked in them, below the caller\'s span', async () => {
    const metadata = new Metadata()
    metadata.set('traceparent', `00-${traceId}-b7ad6b7169203331-01`)
    await node.cri.image.PullImage({ image: { image: busyboxImage } }, { metadata })
    const { pod_sandbox_id: pod } = await node.cri.runtime.RunPodSandbox({ config: podConfig(node) }, { metadata })
    await removePods(node, pod)
    const run = await span('runtime.v1.RuntimeService/RunPodSandbox')
    assert.equal(run.parentSpanId, 'b7ad6b7169203331')
    assert.equal(run.kind, 2)
    for (const step of ['create network namespace', 'cni add', 'create task', 'start task']) assert.equal((await span(step)).parentSpanId, run.spanId, step)
    const byId = new Map(spans.map((each) => [each.spanId, each]))
    const parent = (name: string): string | undefined => byId.get(spans.find((each) => each.name === name)?.parentSpanId ?? '')?.name
    assert.equal(parent('containerd Tasks.Create'), 'create task')
    assert.equal(parent('containerd Tasks.Start'), 'start task')
    assert.equal(parent('containerd Diff.Apply'), 'unpack layers')
    assert.equal(parent('HTTP HEAD'), 'resolve')
    assert.ok(spans.some(({ name, parentSpanId }) => name === 'HTTP GET' && byId.get(parentSpanId)?.name === 'download layers'), 'layers are fetched within their step')
    assert.ok(spans.every((each) => each.traceId === traceId), 'only what is sampled: not the calls without a caller\'s span')
    assert.ok(!spans.some(({ name }) => name.includes('StopPodSandbox')))
  })

  it('the audit log has who did what, and how it ended', async () => {
    await pull(node, busyboxImage)
    const plain = podConfig(node)
    const config = podConfig(node, { linux: { security_context: { namespace_options: { network: 2 }, privileged: true } } })
    const [plainPod, pod] = [await runPod(node, plain), await runPod(node, config)]
    const container = await startContainer(node, pod, config)
    await node.cri.runtime.ExecSync({ container_id: container, cmd: ['sh', '-c', 'exit 3'], timeout: '30' })
    const { url } = await node.cri.runtime.Exec({ container_id: container, cmd: ['sh', '-c', 'exit 4'], stdout: true })
    const stream = new WebSocket(url.replace(/^http/, 'ws'), ['v5.channel.k8s.io'])
    stream.resume()
    await once(stream, 'close')
    await assert.rejects(node.cri.image.PullImage({ image: { image: 'registry.k8s.io/not/there:1' }, auth: { username: 'u', password: 'top-secret' } }))
    const lines = await eventually('the last line', async () => {
      const found = await audited()
      return found.some(({ action, image }) => action === 'PullImage' && image === 'registry.k8s.io/not/there:1') && found.some(({ action }) => action === 'ExecStream') ? found : undefined
    })
    const of = (action: string): Record<string, unknown> => lines.find((line) => line['action'] === action) ?? assert.fail(`no line for ${action}`)
    const comm = (await readFile('/proc/self/comm', 'utf8')).trim()
    assert.deepEqual(of('ExecSync')['caller'], { pid: process.pid, uid: 0, gid: 0, process: comm })
    assert.deepEqual(of('ExecSync')['command'], ['sh', '-c', 'exit 3'])
    assert.equal(of('ExecSync')['containerId'], container)
    assert.equal(of('ExecSync')['pod'], config.metadata?.name)
    assert.equal(of('ExecStream')['exitCode'], 4)
    assert.equal(of('ExecStream')['requestId'], of('Exec')['requestId'])
    assert.deepEqual([of('RunPodSandbox')['privileged'], of('RunPodSandbox')['hostNamespaces'], of('RunPodSandbox')['podSandboxId']], [true, ['network'], pod])
    assert.equal(lines.filter(({ action }) => action === 'RunPodSandbox').length, 1, 'an ordinary pod has no line')
    assert.equal(lines.find(({ image }) => image === 'registry.k8s.io/not/there:1')?.['result'], 'NOT_FOUND')
    const text = await readFile(auditLog(), 'utf8')
    for (const secret of ['top-secret', url.slice(url.lastIndexOf('/') + 1)]) assert.ok(!text.includes(secret))

    await rename(auditLog(), `${auditLog()}.1`)
    await node.cri.image.RemoveImage({ image: { image: 'registry.k8s.io/none:1' } })
    const anew = await eventually('a line after the rotation', async () => (existsSync(auditLog()) ? audited().then((found) => (found.length > 0 ? found : undefined)) : undefined))
    assert.deepEqual(anew.map(({ action }) => action), ['RemoveImage'])
    await removePods(node, pod, plainPod)
  })

  it('every metric and label of the alert rules and of the dashboard is in the real output', async () => {
    const { status, body } = await get(metrics(), '/metrics')
    assert.equal(status, 200)
    const samples = samplesOf(body)
    const all = await expressions()
    assert.ok(all.length > 40)
    for (const { where, expr } of all) {
      const names = [...expr.matchAll(/\b(?:cri_shim|process|nodejs)_\w+/g)].map(([name]) => name)
      assert.ok(names.length > 0 || expr.startsWith('up{'), `${where}: no metric in ${expr}`)
      for (const name of names) {
        const labels = samples.get(name)
        assert.ok(labels, `${where}: there is no ${name}`)
        if (labels.size === 0) continue // nothing of it has happened
        const used = [...expr.matchAll(/by \(([^)]*)\)/g)].flatMap(([, list = '']) => list.split(', ')).concat([...expr.matchAll(/(\w+)(?:=~|!~|!=|=)"/g)].map(([, label = '']) => label))
        for (const label of used) assert.ok(['instance', 'job', 'le'].includes(label) || labels.has(label), `${where}: ${name} has no label ${label}`)
      }
    }
  })

  it('promtool accepts the output and the rules', async (t) => {
    if (!(process.env['PATH'] ?? '').split(delimiter).some((dir) => existsSync(join(dir, 'promtool')))) {
      t.skip('promtool (Debian: prometheus) is not installed')
      return
    }
    const promtool = async (args: string[], input = ''): Promise<string> => new Promise((resolve) => {
      const child = execFile('promtool', args, (error, stdout, stderr) => resolve(error === null ? '' : `${stdout}${stderr}`))
      child.stdin?.end(input)
    })
    assert.equal(await promtool(['check', 'rules', join(deploy, 'prometheus/cri-shim-rules.yaml')]), '')
    // Its remarks are about names that Node's own metrics have; what it cannot parse is another matter.
    const remarks = await promtool(['check', 'metrics'], (await get(metrics(), '/metrics')).body)
    assert.deepEqual(remarks.split('\n').filter((line) => line.includes('cri_shim') || line.startsWith('error')), [])
  })

  it('healthz and readyz say what is wrong while containerd is away', async () => {
    assert.deepEqual([await get(metrics(), '/healthz'), await get(metrics(), '/readyz')], [{ status: 200, body: 'ok\n' }, { status: 200, body: 'ok\n' }])
    await node.containerd.end('SIGKILL')
    const [health, ready] = await eventually('both answer 503', async () => {
      const answers = [await get(metrics(), '/healthz'), await get(metrics(), '/readyz')]
      return answers.every(({ status }) => status === 503) ? answers : undefined
    })
    assert.match(health?.body ?? '', /containerd does not answer|containerd did not answer/)
    assert.match(ready?.body ?? '', /containerd is not to be reached/)
    assert.match((await get(metrics(), '/metrics')).body, /^cri_shim_ready 0$/m)
    await node.containerd.start()
    await eventually('both answer 200', async () => (await get(metrics(), '/healthz')).status === 200 && (await get(metrics(), '/readyz')).status === 200)
  })
})
