import { concurrencies } from '../operations.ts'
import { inParallel } from '../parallel.ts'
import { type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import type { SideName } from '../statistics.ts'
import { containersPerPod, noPods, startMany, stopMany } from './many.ts'

/** 100 running containers, as a full node has them. */
const podCount = 20
const callsPerTurn = 10

/** Both List calls with 100 running containers. Returns the peak memory of each service while it had them, in bytes. */
export async function listStage(context: RunContext): Promise<ReadonlyMap<SideName, number>> {
  for (const { service } of context.sides) await service.resetRecentPeak()
  const pods = noPods(context)
  await startMany(context, pods, podCount, 'list')
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
  await stopMany(context, pods)
  return peaks
}
