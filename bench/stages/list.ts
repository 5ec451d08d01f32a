import { concurrencies } from '../operations.ts'
import { inParallel } from '../parallel.ts'
import { planPod } from '../pod.ts'
import { type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import type { SideName } from '../statistics.ts'
import { type StartedPod, startPod, stopPod } from './pods.ts'

/** 100 running containers, as a full node has them. */
const podCount = 20
const containersPerPod = 5
const callsPerTurn = 10
/** Pods that are started or stopped at a time. */
const atATime = 2

/** Both List calls with 100 running containers. Returns the peak memory of each service while it had them, in bytes. */
export async function listStage(context: RunContext): Promise<ReadonlyMap<SideName, number>> {
  for (const { service } of context.sides) await service.resetRecentPeak()
  const pods = new Map<SideName, StartedPod[]>(context.sides.map(({ name }) => [name, []]))
  const names = Array.from({ length: containersPerPod }, (_, index) => `c${index}`)
  await context.phase('start 100 containers', async () => {
    for (let first = 0; first < podCount; first += atATime) {
      for (const side of context.sides) {
        context.progress('starting 100 containers', `${first * containersPerPod} are up`)
        pods.get(side.name)?.push(...await inParallel(atATime, async (index) => startPod(context, side, await planPod(side, `list-${first + index}`), names, () => undefined)))
      }
    }
  })
  await settle(context)
  for (const concurrency of concurrencies) {
    await context.phase(`list, ${concurrency} at a time`, () => inTurn(context, 'List', concurrency, context.options.rounds, async (side, record) => {
      await inParallel(concurrency, async () => {
        for (let call = 0; call < callsPerTurn; call++) {
          const { containers } = await timed(record, 'ListContainers', () => side.cri.runtime.ListContainers({}, callSettings(context)))
          const { items } = await timed(record, 'ListPodSandbox', () => side.cri.runtime.ListPodSandbox({}, callSettings(context)))
          if (containers.length !== podCount * containersPerPod || items.length !== podCount) throw new Error(`${side.title} lists ${containers.length} containers and ${items.length} pods in place of ${podCount * containersPerPod} and ${podCount}`)
        }
      })
    }))
  }
  const peaks = new Map<SideName, number>()
  for (const { name, service } of context.sides) peaks.set(name, await service.recentPeakBytes())
  await context.phase('stop 100 containers', async () => {
    for (let first = 0; first < podCount; first += atATime) {
      for (const side of context.sides) {
        context.progress('stopping 100 containers', `${(podCount - first) * containersPerPod} are left`)
        await inParallel(atATime, async (index) => stopPod(context, side, pods.get(side.name)?.[first + index] as StartedPod, () => undefined))
      }
    }
  })
  return peaks
}
