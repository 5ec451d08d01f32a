import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { CriError, messageOf } from '../errors/cri-error.ts'
import { join } from './join.ts'
import { Operation } from './operation.ts'
import { UndoStack } from './undo-stack.ts'

describe('UndoStack', () => {
  it('runs last in, first out, past what fails and past what hangs without heeding its signal', async () => {
    const order: string[] = []
    const stack = new UndoStack()
    stack.push('directory', async () => void order.push('directory'))
    stack.push('fails', async () => {
      order.push('fails')
      throw new Error('no')
    })
    stack.push('hangs', () => {
      order.push('hangs')
      return new Promise(() => undefined)
    })
    const failures = await stack.run(20)
    assert.deepEqual(order, ['hangs', 'fails', 'directory'])
    assert.deepEqual(failures.map(({ name, error }) => [name, error instanceof CriError ? error.code : messageOf(error)]), [['hangs', 4], ['fails', 'no']])
    assert.deepEqual(await stack.run(20), [], 'each step runs once')
  })
})

describe('Operation', () => {
  it('names the step that failed, not the one that was begun last', async () => {
    const seen: [string, boolean][] = []
    const operation = new Operation('RunPodSandbox', { onStep: (_, step, _seconds, failed) => void seen.push([step, failed]) })
    const slow = Promise.withResolvers<void>()
    await assert.rejects(join<[void, void]>(new AbortController().signal, [
      () => operation.step('cni add', async () => {
        await slow.promise
        throw new Error('no address left')
      }),
      (signal) => operation.step('create task', async () => {
        slow.resolve()
        await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
        signal.throwIfAborted()
      }),
    ]), /no address left/)
    assert.equal(operation.currentStep, 'create task')
    assert.equal(operation.failedStep, 'cni add')
    assert.deepEqual(seen, [['cni add', true], ['create task', true]])
  })

  it('says which steps run side by side', async () => {
    const operation = new Operation('RunPodSandbox')
    const end = Promise.withResolvers<void>()
    const steps = [operation.step('a', () => end.promise), operation.step('b', () => end.promise)]
    assert.match(operation.describe(), /^RunPodSandbox in flight for 0\.\d s, step: a \+ b$/)
    end.resolve()
    await Promise.all(steps)
  })

  it('undoes the steps that succeeded and what was pushed before one failed, nothing after commit', async () => {
    const undone: string[] = []
    const operation = new Operation('x')
    await operation.step('made', async () => 7, async (value) => void undone.push(`made ${value}`))
    operation.onUndo('half', async () => void undone.push('half'))
    await assert.rejects(operation.step('fails', () => Promise.reject(new Error('no')), async () => void undone.push('never')))
    assert.deepEqual(await operation.undo(), [])
    assert.deepEqual(undone, ['half', 'made 7'])
    await operation.step('made', async () => 8, async () => void undone.push('again'))
    operation.commit()
    assert.deepEqual(await operation.undo(), [])
    assert.equal(undone.length, 2)
  })
})

describe('join', () => {
  it('waits for every branch before it throws the first failure', async () => {
    let ended = false
    const failing = join<[void, void]>(new AbortController().signal, [
      () => Promise.reject(new Error('first')),
      async (signal) => {
        await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
        ended = true
        throw new Error('second')
      },
    ])
    await assert.rejects(failing, /first/)
    assert.ok(ended)
  })
})
