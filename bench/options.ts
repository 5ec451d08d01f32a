import { parseArgs } from 'node:util'
import { type OperationName, operations, selectOperations } from './operations.ts'

export interface BenchOptions {
  /** Pods per side, one at a time; the other counts follow from it. */
  readonly rounds: number
  /** A short run: few rounds, a smaller image. */
  readonly quick: boolean
  readonly only: ReadonlySet<OperationName>
  readonly jsonFile: string | undefined
  /** Say where cri-shim's time goes, from its metrics. */
  readonly profile: boolean
  /** The plugin on both sides: how far apart two equal services come out. */
  readonly control: boolean
  /** containerd's program. */
  readonly binary: string
}

export const help = `node bench/run.ts [OPTIONS]    (make bench ARGS="OPTIONS")
Measures cri-shim against the CRI plugin of the same containerd, each on a private containerd, in turn. Needs root.

  --rounds N      pods per side, one at a time; other counts follow from it (default: 40, with --quick 5)
  --quick         few rounds and a smaller image: for a first look, not for comparing versions
  --only OPS      operations or groups, separated by commas: ${operations.join(', ')};
                  pods, exec, streams, list, stats, pull, mirrors
  --profile       also say where cri-shim's time goes: its steps and its calls to containerd
  --json FILE     write every sample and the summary to FILE
  --control       the plugin on both sides: shows how far apart two equal services come out
  --binary PATH   containerd's program; its shim and runc are looked for beside it first (default: from PATH)
  --help          this text

The numbers decide nothing: the exit code is 0 whatever they are, 1 when something failed, 2 when an option is wrong, 130 on Ctrl-C.`

/** The options of a run, `help` when they ask for it. Throws a TypeError or RangeError that says what is wrong. */
export function parseOptions(args: readonly string[]): BenchOptions | 'help' {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rounds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      only: { type: 'string', multiple: true },
      profile: { type: 'boolean', default: false },
      json: { type: 'string' },
      control: { type: 'boolean', default: false },
      binary: { type: 'string', default: 'containerd' },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) return 'help'
  const rounds = values.rounds ?? (values.quick ? '5' : '40')
  if (!/^[1-9]\d{0,4}$/.test(rounds)) throw new RangeError(`--rounds: "${rounds}" is not a number from 1 to 99999`)
  if (values.profile && values.control) throw new RangeError('--profile reads the metrics of cri-shim, which --control leaves out: give one of the two')
  const names = (values.only ?? []).flatMap((list) => list.split(',')).map((name) => name.trim()).filter((name) => name !== '')
  return {
    rounds: Number(rounds),
    quick: values.quick,
    only: names.length === 0 ? new Set(operations) : selectOperations(names),
    jsonFile: values.json,
    profile: values.profile,
    control: values.control,
    binary: values.binary,
  }
}
