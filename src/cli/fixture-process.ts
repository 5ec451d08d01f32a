import { CriError, Code } from '../errors/cri-error.ts'
import { tableOf } from '../server/fixtures.ts'
import { runProcess } from './command-line.ts'

// The binary with a small service behind it, for the tests of this folder. TEST_SERVICE says how it behaves.

const mode = process.env['TEST_SERVICE']
const say = (text: string): void => void process.stderr.write(`${text}\n`)

await runProcess(async () => async (_settings, log) => {
  let started = false
  const long = log.child({ component: 'test' })
  return {
    gate: () => (started ? undefined : new CriError(Code.UNAVAILABLE, 'still starting')),
    handlers: tableOf({
      Version: async () => ({ version: '0.1.0' }),
      ListImages: async () => {
        long.debug('a line of a component')
        return {}
      },
      StopContainer: async (ctx) => {
        say('stop container')
        if (mode === 'reject') void Promise.reject(new Error('nobody caught this'))
        if (mode === 'throw') {
          setImmediate(() => {
            throw new Error('nobody expected this')
          })
        }
        if (mode === 'hang') {
          await new Promise((resolve) => ctx.signal.addEventListener('abort', resolve))
          say('aborted')
        }
        return {}
      },
    }),
    async start(): Promise<void> {
      if (mode === 'fail') throw new CriError(Code.FAILED_PRECONDITION, 'cannot start', { cause: new Error('the reason') })
      if (mode === 'wait') await new Promise(() => undefined)
      started = true
    },
    async close(): Promise<void> {
      say('service closed')
      if (mode === 'fail-close') throw new Error('close failed')
    },
  }
})
