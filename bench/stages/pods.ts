import { concurrencies } from '../operations.ts'
import { inParallel } from '../parallel.ts'
import { type PodPlan, planContainer, planPod, waitUntilUp } from '../pod.ts'
import { type Record, type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import type { Side } from '../side.ts'

export interface StartedPod {
  readonly podId: string
  readonly containerIds: readonly string[]
}

/** Starts a pod with these containers, one after the other as the kubelet does, and waits until they are up (which is not measured). */
export async function startPod(context: RunContext, side: Side, plan: PodPlan, containers: readonly string[], record: Record): Promise<StartedPod> {
  const settings = callSettings(context)
  const { runtime } = side.cri
  const plans = await Promise.all(containers.map(async (name) => planContainer(plan, name)))
  const started = performance.now()
  const { pod_sandbox_id: podId } = await timed(record, 'RunPodSandbox', () => runtime.RunPodSandbox({ config: plan.config }, settings))
  const containerIds: string[] = []
  for (const { config } of plans) {
    const { container_id } = await timed(record, 'CreateContainer', () => runtime.CreateContainer({ pod_sandbox_id: podId, config, sandbox_config: plan.config }, settings))
    await timed(record, 'StartContainer', () => runtime.StartContainer({ container_id }, settings))
    containerIds.push(container_id)
  }
  record('pod start', performance.now() - started)
  await Promise.all(plans.map(async (container) => waitUntilUp(container, context.signal)))
  return { podId, containerIds }
}

/** Stops and removes a pod in the kubelet's order: containers, sandbox, then both are removed. */
export async function stopPod(context: RunContext, side: Side, { podId, containerIds }: StartedPod, record: Record): Promise<void> {
  const settings = callSettings(context)
  const { runtime } = side.cri
  const started = performance.now()
  for (const container_id of containerIds) await timed(record, 'StopContainer', () => runtime.StopContainer({ container_id, timeout: '30' }, settings))
  await timed(record, 'StopPodSandbox', () => runtime.StopPodSandbox({ pod_sandbox_id: podId }, settings))
  for (const container_id of containerIds) await timed(record, 'RemoveContainer', () => runtime.RemoveContainer({ container_id }, settings))
  await timed(record, 'RemovePodSandbox', () => runtime.RemovePodSandbox({ pod_sandbox_id: podId }, settings))
  record('pod stop and remove', performance.now() - started)
}

/** Fails unless the pods have an address of the side's network and their containers ended by the SIGTERM: else something else was measured. */
async function checkPods(context: RunContext, side: Side, pods: readonly StartedPod[]): Promise<void> {
  const prefix = side.containerd.network.subnet.replace(/0\/24$/, '')
  for (const { podId } of pods) {
    const { status } = await side.cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId }, callSettings(context))
    const ip = status?.network?.ip ?? ''
    if (!ip.startsWith(prefix)) throw new Error(`${side.title}: a pod has the address "${ip}", which is not one of ${side.containerd.network.subnet}`)
  }
}

/** Pods with one container: start and stop. */
export async function podStage(context: RunContext): Promise<void> {
  for (const concurrency of concurrencies) {
    const rounds = concurrency === 1 ? context.options.rounds : Math.max(2, Math.ceil(context.options.rounds / 2))
    await context.phase(`pods, ${concurrency} at a time`, () => inTurn(context, 'pods', concurrency, rounds, async (side, record, round) => {
      const plans = await inParallel(concurrency, async (index) => planPod(side, `pod-${concurrency}-${round}-${index}`))
      await settle(context)
      const pods = await inParallel(concurrency, async (index) => startPod(context, side, plans[index] as PodPlan, ['main'], record))
      if (round === 0) await checkPods(context, side, pods)
      await settle(context)
      await inParallel(concurrency, async (index) => stopPod(context, side, pods[index] as StartedPod, record))
    }))
  }
}
