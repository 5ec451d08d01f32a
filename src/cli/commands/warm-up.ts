import { type Command, ExitCode } from '../command.ts'

export const warmUpCommand: Command = {
  name: 'warm-up',
  summary: 'fill the compile cache, so that the next start is quick and small',
  maxPositionals: 0,
  flags: {},
  details: 'The cache is in NODE_COMPILE_CACHE. bin/cri-shim does this by itself before the first start.',
  async run() {
    const { warmUp } = await import('../warm-up.ts')
    await warmUp()
    return ExitCode.ok
  },
}
