// node bench/run.ts [--quick] …: cri-shim and the CRI plugin of the same containerd side by side. See docs/benchmarks.md.
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { arch, cpus, release, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { messageOf } from '../src/errors/cri-error.ts'
import { type BlackHole, openBlackHole } from '../test/fixtures/black-hole.ts'
import { command, output } from '../test/fixtures/command.ts'
import { writeHostsToml } from '../test/fixtures/registry/hosts-toml.ts'
import { startRegistry } from '../test/fixtures/registry/registry.ts'
import { buildCatalog, registryHosts, sandboxImage } from '../test/images/catalog.ts'
import { rememberHostNetwork } from './network.ts'
import { stages } from './operations.ts'
import { type BenchOptions, help, parseOptions } from './options.ts'
import { type Phase, measurePhase, measureStart } from './phases.ts'
import { benchImage } from './pod.ts'
import type { ProcessMeter } from './process-meter.ts'
import { startProgress } from './progress.ts'
import { reportText } from './report.ts'
import { type ProcessTotals, type Results, type SideTotals, summarise } from './results.ts'
import type { RunContext } from './run-context.ts'
import { type Side, type SideOptions, startSide } from './side.ts'
import { execStage } from './stages/exec.ts'
import { listStage } from './stages/list.ts'
import { buildMirrorImages, mirrorStage } from './stages/mirrors.ts'
import { podStage } from './stages/pods.ts'
import { buildPullImages, pullStage } from './stages/pull.ts'
import { statsStage } from './stages/stats.ts'
import { streamStage } from './stages/streams.ts'
import { Samples, type SideName, sideNames } from './statistics.ts'

/** Of the pulled image, uncompressed. Half of it compresses to nothing, so that these are 200 MB and 40 MB on the wire. */
const pullSizeBytes = { full: 400e6, quick: 80e6 }

const progress = startProgress()
const interrupted = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    progress.say(interrupted.signal.aborted ? 'still cleaning up' : `stopped by ${signal}: cleaning up`)
    interrupted.abort(new Error(`stopped by ${signal}`))
  })
}
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', () => interrupted.abort(new Error('nobody reads the output any more'))) // a closed pipe must not keep this from cleaning up
}
process.exitCode = await main(process.argv.slice(2))

async function main(args: readonly string[]): Promise<number> {
  let options: BenchOptions | 'help'
  try {
    options = parseOptions(args)
  } catch (error) {
    console.error(`${messageOf(error)}\n\n${help}`)
    return 2
  }
  if (options === 'help') {
    console.log(help)
    return 0
  }
  if (process.getuid?.() !== 0) {
    console.error('the benchmark starts containers: run it as root')
    return 2
  }
  const version = await command(options.binary, ['--version'])
  if (version.code !== 0) {
    console.error(`containerd does not run (${version.stderr.trim()}): install it with \`apt-get install containerd\`, or give its path with --binary`)
    return 2
  }
  try {
    const { results, samples } = await runIn(await mkdtemp(join(tmpdir(), 'cri-shim-bench-')), options, version.stdout.trim().replace(/^containerd /, ''))
    progress.end()
    console.log(reportText(results))
    if (options.jsonFile !== undefined) await writeFile(options.jsonFile, jsonText(results, samples))
    return 0
  } catch (error) {
    progress.end()
    if (interrupted.signal.aborted) return 130
    console.error(`the benchmark failed: ${messageOf(error)}`)
    return 1
  }
}

/** Runs everything below a directory that this deletes in the end, on success, failure and interruption alike. */
async function runIn(dir: string, options: BenchOptions, containerdVersion: string): Promise<{ results: Results; samples: Samples }> {
  const hostNetwork = await rememberHostNetwork()
  const sides: Side[] = []
  let done = false
  let registry: AsyncDisposable | undefined
  let blackHole: BlackHole | undefined
  const chosen = (stage: keyof typeof stages): boolean => stages[stage].some((operation) => options.only.has(operation))
  try {
    const { signal } = interrupted
    progress.say('building the test images')
    const [contentDir, certsDir] = [join(dir, 'content'), join(dir, 'certs.d')]
    await buildCatalog(contentDir)
    const pullImages = chosen('pull') ? await buildPullImages(contentDir, options.quick ? pullSizeBytes.quick : pullSizeBytes.full, progress.say) : undefined
    if (chosen('mirrors')) {
      await buildMirrorImages(contentDir, options)
      blackHole = await openBlackHole()
      process.env['NO_PROXY'] = '*' // or a proxy of this machine is asked for what lies behind it
    }
    const server = await startRegistry({ contentDir })
    registry = server
    await writeHostsToml(certsDir, registryHosts, server.url)
    for (const name of sideNames) {
      signal.throwIfAborted()
      const side = sideOptions(name, options, join(dir, name), certsDir)
      progress.say(`starting ${side.title}`)
      await mkdir(side.dir)
      sides.push(await startSide(side))
    }
    const { phases, context } = newContext(sides, options)
    phases.push(await measureStart(sides))
    await context.phase('pull two small images', async () => {
      for (const { cri } of sides) for (const image of [sandboxImage, benchImage]) await cri.image.PullImage({ image: { image } }, { signal })
    })

    if (chosen('pods')) await podStage(context)
    if (chosen('exec')) await execStage(context)
    if (chosen('streams')) await streamStage(context)
    const peaks = chosen('list') ? await listStage(context) : new Map<SideName, number>()
    const idle = chosen('stats') ? await statsStage(context) : new Map<SideName, number>()
    const served = pullImages === undefined ? undefined : await pullStage(context, server, pullImages)
    if (blackHole !== undefined) await mirrorStage(context, { registry: server, certsDir, blackHole })

    const totals = new Map<SideName, SideTotals>()
    for (const { name, title, service, backend } of sides) {
      totals.set(name, { title, service: await totalsOf(service), backend: backend === undefined ? undefined : await totalsOf(backend), peakBytesWith100Containers: peaks.get(name), idleMsPerContainerMinute: idle.get(name) })
    }
    const results = { about: await aboutRun(dir, options, containerdVersion), operations: summarise(context.samples, options.only), totals, phases, served }
    done = true
    return { results, samples: context.samples }
  } catch (error) {
    if (!interrupted.signal.aborted) progress.note(`logs: ${await keepLogs(dir)}`)
    throw error
  } finally {
    progress.say('cleaning up')
    for (const side of sides) await cleanUp(`left behind by ${side.title}`, async () => side.stop(!done))
    await cleanUp('black hole', async () => blackHole?.[Symbol.asyncDispose]())
    await cleanUp('registry', async () => registry?.[Symbol.asyncDispose]())
    await cleanUp('left on the machine', async () => hostNetwork.restore())
    await cleanUp(dir, async () => rm(dir, { recursive: true, force: true }))
  }
}

/** Shows the lines that the work returns. What fails is shown too, and does not keep the rest from being cleaned up. */
async function cleanUp(title: string, work: () => Promise<readonly string[] | undefined | void>): Promise<void> {
  try {
    for (const line of await work() ?? []) progress.note(`${title}: ${line}`)
  } catch (error) {
    progress.note(`${title}: cleaning up failed: ${messageOf(error)}`)
  }
}

/** Copies the logs of the services out of the directory that is deleted. Returns where they are. */
async function keepLogs(dir: string): Promise<string> {
  const kept = await mkdtemp(join(tmpdir(), 'cri-shim-bench-failed-'))
  for (const side of sideNames) {
    for (const name of ['containerd.log', 'cri-shim.log']) await copyFile(join(dir, side, name), join(kept, `${side}-${name}`)).catch(() => undefined) // not every side has both
  }
  return kept
}

function sideOptions(name: SideName, { control, binary, profile }: BenchOptions, dir: string, certsDir: string): SideOptions {
  const service = name === 'plugin' || control ? 'plugin' : 'cri-shim'
  const title = control ? (name === 'plugin' ? 'plugin A' : 'plugin B') : service
  return { name, service, title, dir, binary, certsDir, withMetrics: profile }
}

function newContext(sides: readonly Side[], options: BenchOptions): { context: RunContext; phases: Phase[] } {
  const phases: Phase[] = []
  const context: RunContext = {
    sides, options, samples: new Samples(), signal: interrupted.signal, progress: progress.say,
    phase: async (name, work) => {
      const { result, phase } = await measurePhase(name, sides, work)
      phases.push(phase)
      return result
    },
  }
  return { context, phases }
}

async function totalsOf(meter: ProcessMeter): Promise<ProcessTotals> {
  const { own, children } = await meter.cpu()
  return { cpuSeconds: own, childrenCpuSeconds: children, peakBytes: await meter.peakBytes() }
}

async function aboutRun(dir: string, { rounds, quick, only, control }: BenchOptions, containerdVersion: string): Promise<Record<string, string>> {
  const fileSystem = (await output('stat', ['--file-system', '--format=%T', dir])).trim()
  return {
    services: control ? 'the CRI plugin of containerd against itself (--control)' : 'the CRI plugin of containerd, and cri-shim in front of the same containerd',
    containerd: containerdVersion,
    runtime: (await output('runc', ['--version'])).split('\n')[0] ?? '',
    machine: `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'CPU'}, ${Math.round(totalmem() / 1e9)} GB, Linux ${release()} ${arch()}, ${fileSystem}`,
    run: `${rounds} rounds${quick ? ', --quick' : ''}, Node.js ${process.version}`,
    ...(stages.pull.some((operation) => only.has(operation)) ? { image: `${Math.round((quick ? pullSizeBytes.quick : pullSizeBytes.full) / 2e6)} MB as gzip in 8 layers, twice that unpacked` } : {}),
  }
}

function jsonText(results: Results, samples: Samples): string {
  return `${JSON.stringify({
    ...results,
    operations: results.operations.map((one) => ({ ...one, samplesMs: Object.fromEntries(sideNames.map((side) => [side, samples.of(side, one.operation, one.concurrency)])) })),
    totals: Object.fromEntries(results.totals),
    phases: results.phases.map((phase) => ({ ...phase, usage: Object.fromEntries(phase.usage) })),
  }, undefined, 2)}\n`
}
