import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { Code, CriError } from '../errors/cri-error.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { TaskTeardown } from './task-teardown.ts'
import type { TasksService, TaskState } from './tasks.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const refused = new CriError(Code.INTERNAL, 'cannot signal container in state created')

/** Tasks of a runtime that kills nothing; `deletable`: it deletes, though. */
function teardown(state: TaskState, deletable: boolean): { readonly calls: string[]; readonly destroy: () => Promise<unknown> } {
  const calls: string[] = []
  const tasks = {
    get: async () => ({ containerId: 'c', pid: 7, state, exitStatus: 0, exitedAt: 0n }),
    wait: async () => new Promise<never>(() => undefined),
    kill: async () => {
      calls.push('kill')
      throw refused
    },
    delete: async () => {
      calls.push('delete')
      if (!deletable) throw new CriError(Code.FAILED_PRECONDITION, 'task must be stopped before deletion')
      return { exitStatus: 0, exitedAt: 1n }
    },
  }
  const made = new TaskTeardown(tasks as unknown as TasksService, new KeyedMutex())
  return { calls, destroy: async () => made.destroy(ctx, 'c') }
}

test('a task that was never started and takes no signal is deleted all the same', async () => {
  const { calls, destroy } = teardown('created', true)
  assert.deepEqual(await destroy(), { exitStatus: 0, exitedAt: 1n })
  assert.deepEqual(calls, ['kill', 'delete'])
})

test('when that is no use either, why it could not be killed is what is said; one that runs is not deleted', async () => {
  await assert.rejects(teardown('created', false).destroy(), refused)
  const running = teardown('running', true)
  await assert.rejects(running.destroy(), refused)
  assert.deepEqual(running.calls, ['kill'])
})
