// node test/critest/run.ts [--control] [--focus REGEXP] [--skip REGEXP] [--all] [--binary CONTAINERD] [--keep] [--upstream] [--websocket]
// Runs the conformance specs of cri-tools against cri-shim, or (--control) against containerd's own CRI plugin, on a private containerd and a
// local registry, and compares every spec's outcome with expected.json. Exit code 0: all as expected. The streaming specs run twice, over SPDY and
// over WebSocket; with --websocket, --focus or --control once.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { chmod, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { command } from '../fixtures/command.ts'
import { startContainerd } from '../fixtures/containerd.ts'
import { startCriShim } from '../fixtures/cri-shim.ts'
import { leakLines } from '../fixtures/leaks.ts'
import { writeHostsToml } from '../fixtures/registry/hosts-toml.ts'
import { startRegistry } from '../fixtures/registry/registry.ts'
import { buildCatalog, registryHosts, sandboxImage } from '../images/catalog.ts'
import { type Expectation, type Outcome, compare, parseReport, summary } from './report.ts'

const { values } = parseArgs({
  options: {
    control: { type: 'boolean', default: false },
    focus: { type: 'string' },
    skip: { type: 'string' },
    all: { type: 'boolean', default: false },
    binary: { type: 'string' },
    keep: { type: 'boolean', default: false },
    upstream: { type: 'boolean', default: false },
    websocket: { type: 'boolean', default: false },
  },
})

/** What cri-shim does so far; the other groups (security context, AppArmor, SELinux, NRI, image volumes) run with --all. */
const defaultFocus = '\\[k8s.io\\] (Runtime info|PodSandbox|Container|Networking|Image Manager|Image Consistency|Image Identifier Consistency|Streaming|Idempotence|Multiple Containers)'

const critest = process.env['CRITEST'] ?? 'critest'
const version = await command(critest, ['-version'])
if (version.code !== 0) {
  console.error(`critest is not installed (${critest}): nothing was tested.
It is part of cri-tools. Either fetch it, which needs the network:
  curl -L https://github.com/kubernetes-sigs/cri-tools/releases/download/v1.36.0/critest-v1.36.0-linux-$(dpkg --print-architecture).tar.gz | tar -xz -C /usr/local/bin
or build it, with Go, in a checkout of https://github.com/kubernetes-sigs/cri-tools: make critest
then run: make critest CRITEST=/path/to/critest`)
  process.exit(2)
}
if (process.getuid?.() !== 0) {
  console.error('critest starts containers: run it as root')
  process.exit(2)
}

const expectations = (JSON.parse(await readFile(join(import.meta.dirname, 'expected.json'), 'utf8')) as readonly Expectation[])
  .filter(({ offline }) => offline !== true || !values.upstream)
const server = values.control ? 'containerd' : 'cri-shim'
const dir = await mkdtemp(join(tmpdir(), 'critest-'))
// Whoever is root in a user namespace must be able to reach its root file system.
await chmod(dir, 0o711)
const interrupted = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupted.abort(new Error(`stopped by ${signal}`)))
let good = false
try {
  good = await run()
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
} finally {
  if (good && !values.keep) await rm(dir, { recursive: true, force: true })
  else console.log(`Logs and report: ${dir}`)
}
process.exit(good ? 0 : 1)

async function run(): Promise<boolean> {
  console.log('building the test images …')
  const contentDir = join(dir, 'content')
  const certsDir = join(dir, 'certs.d')
  await buildCatalog(contentDir)
  await using registry = await startRegistry({ contentDir })
  await writeHostsToml(certsDir, registryHosts, registry.url, { upstream: values.upstream })
  console.log(`starting containerd${values.control ? ' with its own CRI plugin' : ' and cri-shim'} …`)
  await using containerd = await startContainerd({ dir, cri: values.control, certsDir, sandboxImage, ...(values.binary === undefined ? {} : { binary: values.binary }) })
  await using shim = values.control ? undefined : await startCriShim({ dir, containerdSocket: containerd.socket, configFile: containerd.configFile })
  const socket = shim?.socket ?? containerd.socket
  const outcomes = [...await runSpecs(socket, { name: 'report', focus: values.focus ?? (values.all ? undefined : defaultFocus), websocket: values.websocket })]
  if (values.focus === undefined && !values.websocket && !values.control) {
    const again = await runSpecs(socket, { name: 'websocket', focus: '\\[k8s.io\\] Streaming', websocket: true })
    outcomes.push(...again.map((outcome) => ({ ...outcome, text: `${outcome.text} (over WebSocket)` })))
  }
  if (shim !== undefined) await shim.end('SIGTERM')
  const left = leakLines(await containerd.stop())
  const verdict = compare(outcomes, expectations, server)
  console.log(summary(outcomes, verdict, server))
  for (const line of left) console.log(`left behind: ${line}`)
  return verdict.surprises.length === 0 && outcomes.some(({ state }) => state === 'passed')
}

async function runSpecs(socket: string, { name, focus, websocket }: { readonly name: string; readonly focus: string | undefined; readonly websocket: boolean }): Promise<readonly Outcome[]> {
  const reportFile = join(dir, `${name}.json`)
  const args = [
    `-runtime-endpoint=unix://${socket}`,
    '-ginkgo.seed=1', // the order of the specs
    '-ginkgo.randomize-all=false',
    '-ginkgo.no-color',
    '-ginkgo.v', // a line per spec, for the progress shown here
    `-ginkgo.json-report=${reportFile}`,
    '-test.timeout=0',
    ...(websocket ? ['-websocket-exec', '-websocket-attach', '-websocket-portforward'] : []),
    ...(focus === undefined ? [] : [`-ginkgo.focus=${focus}`]),
    ...(values.skip === undefined ? [] : [`-ginkgo.skip=${values.skip}`]),
  ]
  await mkdir(join(dir, 'work'), { recursive: true })
  const child = spawn(critest, args, { stdio: ['ignore', 'pipe', 'pipe'], cwd: join(dir, 'work'), env: { ...process.env, TMPDIR: join(dir, 'work') }, detached: true })
  const log = createWriteStream(join(dir, `critest-${name}.log`))
  const lastLines: string[] = []
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      log.write(`${line}\n`)
      lastLines.push(line)
      if (lastLines.length > 15) lastLines.shift()
      const [, kind, verdict] = /^([•S]) (?:\[(\w+)\] )?\[\d+\.\d+ seconds\]/.exec(line) ?? []
      if (kind !== undefined) process.stdout.write(kind === 'S' ? 's' : verdict === undefined ? '.' : 'F')
    })
  }
  const stop = (): void => { child.kill('SIGTERM') }
  interrupted.signal.addEventListener('abort', stop)
  await once(child, 'close')
  process.stdout.write('\n')
  log.end()
  interrupted.signal.throwIfAborted()
  return parseReport(await readFile(reportFile, 'utf8').catch(() => {
    throw new Error(`critest wrote no report. Its last words:\n${lastLines.join('\n')}`)
  }))
}
