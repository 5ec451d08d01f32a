import { inParallel } from '../parallel.ts'
import { type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import type { SideName } from '../statistics.ts'
import { containersPerPod, noPods, startMany, stopMany } from './many.ts'

const sizes = [100, 300] as const
const concurrencies = [1, 4] as const
/** How long nobody asks for anything: what the service and its containerd use meanwhile is for the background's sampling and measuring. */
const idleSeconds = 30

/** CPU of a service and of what is behind it while nobody asks, in milliseconds per container and minute. */
export type IdleCost = ReadonlyMap<SideName, number>

/** Both stats calls with 100 and with 300 running containers, and what they cost when nobody asks. */
export async function statsStage(context: RunContext): Promise<IdleCost> {
  const pods = noPods(context)
  const empty = await idle(context, 'idle without containers')
  let full = empty
  for (const size of sizes) {
    await startMany(context, pods, size / containersPerPod, 'stats')
    await settle(context)
    if (size === 100) full = await idle(context, `idle with ${size} containers`)
    for (const concurrency of concurrencies) {
      await context.phase(`stats of ${size}, ${concurrency} at a time`, () => inTurn(context, `stats of ${size}`, concurrency, context.options.rounds, async (side, record) => {
        await inParallel(concurrency, async () => {
          const { stats } = await timed(record, `ListContainerStats of ${size}`, () => side.cri.runtime.ListContainerStats({}, callSettings(context)))
          const { stats: ofPods } = await timed(record, `ListPodSandboxStats of ${size}`, () => side.cri.runtime.ListPodSandboxStats({}, callSettings(context)))
          const measured = stats.filter(({ cpu, memory }) => cpu !== null && memory !== null).length
          const whole = ofPods.filter(({ linux }) => linux?.cpu && linux.memory && linux.network && linux.containers.length === containersPerPod).length
          if (measured !== size || whole !== size / containersPerPod) throw new Error(`${side.title} tells the use of ${measured} containers and ${whole} pods in place of ${size} and ${size / containersPerPod}`)
        })
      }))
    }
  }
  await stopMany(context, pods)
  return new Map([...full].map(([side, seconds]) => [side, ((seconds - (empty.get(side) ?? 0)) * 1000 * (60 / idleSeconds)) / 100]))
}

/** CPU seconds per side in a while without calls. */
async function idle(context: RunContext, name: string): Promise<Map<SideName, number>> {
  await settle(context)
  const used = async (): Promise<Map<SideName, number>> => new Map(await Promise.all(context.sides.map(async ({ name: side, service, backend }) => {
    const all = await Promise.all([service, ...(backend === undefined ? [] : [backend])].map(async (meter) => meter.cpu()))
    return [side, all.reduce((sum, { own, children }) => sum + own + children, 0)] as const
  })))
  return context.phase(name, async () => {
    const before = await used()
    context.progress(name, `for ${idleSeconds} s`)
    await new Promise((resolve) => { setTimeout(resolve, idleSeconds * 1000) })
    context.signal.throwIfAborted()
    return new Map([...await used()].map(([side, seconds]) => [side, seconds - (before.get(side) ?? 0)]))
  })
}
