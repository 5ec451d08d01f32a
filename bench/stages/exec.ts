import { concurrencies } from '../operations.ts'
import { inParallel } from '../parallel.ts'
import { planPod } from '../pod.ts'
import { type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import { type StartedPod, startPod, stopPod } from './pods.ts'

const callsPerTurn = 5

/** ExecSync of a command that does nothing, in a pod for each of the calls that run side by side. */
export async function execStage(context: RunContext): Promise<void> {
  const most = Math.max(...concurrencies)
  const pods = await Promise.all(context.sides.map(async (side) => inParallel(most, async (index) => startPod(context, side, await planPod(side, `exec-${index}`), ['main'], () => undefined))))
  await settle(context)
  for (const concurrency of concurrencies) {
    const rounds = concurrency === 1 ? context.options.rounds : Math.max(2, Math.ceil(context.options.rounds / 2))
    await context.phase(`exec, ${concurrency} at a time`, () => inTurn(context, 'ExecSync', concurrency, rounds, async (side, record) => {
      await inParallel(concurrency, async (index) => {
        const container_id = pods[context.sides.indexOf(side)]?.[index]?.containerIds[0] ?? ''
        for (let call = 0; call < callsPerTurn; call++) {
          const { exit_code, stdout } = await timed(record, 'ExecSync', () => side.cri.runtime.ExecSync({ container_id, cmd: ['/bin/echo', 'alive'], timeout: '30' }, callSettings(context)))
          if (exit_code !== 0 || stdout.toString() !== 'alive\n') throw new Error(`${side.title}: ExecSync of \`echo alive\` gave exit code ${exit_code}, output ${JSON.stringify(stdout.toString())}`)
        }
      })
    }))
  }
  await Promise.all(context.sides.map(async (side, at) => inParallel(most, async (index) => stopPod(context, side, pods[at]?.[index] as StartedPod, () => undefined))))
}
