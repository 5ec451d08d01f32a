import { inParallel } from '../parallel.ts'
import { planPod } from '../pod.ts'
import type { RunContext } from '../run-context.ts'
import type { SideName } from '../statistics.ts'
import { type StartedPod, startPod, stopPod } from './pods.ts'

export const containersPerPod = 5
/** Pods that are started or stopped at a time. */
const atATime = 2
const names = Array.from({ length: containersPerPod }, (_, index) => `c${index}`)

/** The pods that each side has, by its name. */
export type ManyPods = ReadonlyMap<SideName, StartedPod[]>

export function noPods({ sides }: RunContext): ManyPods {
  return new Map(sides.map(({ name }) => [name, []]))
}

/** Starts pods on both sides until each has `podCount`; `prefix` names them. */
export async function startMany(context: RunContext, pods: ManyPods, podCount: number, prefix: string): Promise<void> {
  await context.phase(`start ${podCount * containersPerPod} containers`, async () => {
    for (let first = pods.get('shim')?.length ?? 0; first < podCount; first += atATime) {
      for (const side of context.sides) {
        context.progress(`starting ${podCount * containersPerPod} containers`, `${first * containersPerPod} are up`)
        pods.get(side.name)?.push(...await inParallel(atATime, async (index) => startPod(context, side, await planPod(side, `${prefix}-${first + index}`), names, () => undefined)))
      }
    }
  })
}

export async function stopMany(context: RunContext, pods: ManyPods): Promise<void> {
  const podCount = pods.get('shim')?.length ?? 0
  await context.phase(`stop ${podCount * containersPerPod} containers`, async () => {
    for (let first = 0; first < podCount; first += atATime) {
      for (const side of context.sides) {
        context.progress(`stopping ${podCount * containersPerPod} containers`, `${(podCount - first) * containersPerPod} are left`)
        await inParallel(atATime, async (index) => stopPod(context, side, pods.get(side.name)?.[first + index] as StartedPod, () => undefined))
      }
    }
  })
}
