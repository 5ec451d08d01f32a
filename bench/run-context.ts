import { messageOf } from '../src/errors/cri-error.ts'
import type { CallSettings } from '../test/fixtures/cri-client.ts'
import type { BenchOptions } from './options.ts'
import type { Concurrency, OperationName } from './operations.ts'
import type { Side } from './side.ts'
import type { Samples } from './statistics.ts'

/** What every stage works with. */
export interface RunContext {
  readonly sides: readonly Side[]
  readonly options: BenchOptions
  readonly samples: Samples
  /** Aborts when the run is interrupted. */
  readonly signal: AbortSignal
  /** Says how far the run is. */
  readonly progress: (part: string, detail?: string) => void
  /** Calls `work`, and keeps the CPU seconds and cri-shim's metrics of that time under this name. */
  readonly phase: <T>(name: string, work: () => Promise<T>) => Promise<T>
}

/** For every CRI call of a run. */
export const callSettings = ({ signal }: RunContext, timeoutMs = 120_000): CallSettings => ({ signal, timeoutMs })

/** Where one turn of one side puts its durations; a warm-up turn has nowhere. */
export type Record = (operation: OperationName, ms: number) => void

export function recorder({ samples }: RunContext, side: Side, concurrency: Concurrency): Record {
  return (operation, ms) => samples.add(side.name, operation, concurrency, ms)
}

/** Measures one call. */
export async function timed<T>(record: Record, operation: OperationName, work: () => Promise<T>): Promise<T> {
  const started = performance.now()
  const result = await work()
  record(operation, performance.now() - started)
  return result
}

/** How long the services may stay busy after their work is answered, in milliseconds. */
const settleAtMostMs = 3000
const settleWindowMs = 100
const quietSeconds = 0.02

/**
 * Waits until no service and no containerd uses the CPU for more than a moment: what one side still does after its answer (garbage collection,
 * ends of processes) is not to slow the other's turn.
 */
export async function settle({ sides, signal }: RunContext): Promise<void> {
  const meters = sides.flatMap(({ service, backend }) => (backend === undefined ? [service] : [service, backend]))
  const used = async (): Promise<number> => (await Promise.all(meters.map(async (meter) => meter.cpu()))).reduce((sum, { own, children }) => sum + own + children, 0)
  const deadline = performance.now() + settleAtMostMs
  for (let before = await used(); performance.now() < deadline;) {
    signal.throwIfAborted()
    await new Promise((resolve) => setTimeout(resolve, settleWindowMs)) // CPU time has no event
    const now = await used()
    if (now - before <= quietSeconds) return
    before = now
  }
}

/** The sides in turn, `rounds` times: A B A B …; a first turn of each warms up and is not counted. */
export async function inTurn(context: RunContext, what: string, concurrency: Concurrency, rounds: number, turn: (side: Side, record: Record, round: number) => Promise<void>): Promise<void> {
  for (let round = 0; round <= rounds; round++) {
    context.progress(`${what}, ${concurrency} at a time`, round === 0 ? 'warming up' : `round ${round} of ${rounds}`)
    for (const side of context.sides) {
      context.signal.throwIfAborted()
      try {
        await turn(side, round === 0 ? () => undefined : recorder(context, side, concurrency), round)
      } catch (error) {
        throw new Error(`${what}, ${concurrency} at a time, on ${side.title}: ${messageOf(error)}`, { cause: error })
      }
    }
  }
}
