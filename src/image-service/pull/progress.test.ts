import assert from 'node:assert/strict'
import { test } from 'node:test'
import { PullProgress } from './progress.ts'

const layers = [{ digest: 'sha256:a', sizeBytes: 100 }, { digest: 'sha256:b', sizeBytes: 200 }, { digest: 'sha256:c', sizeBytes: 50 }]

test('the listing tells of each pull what is there, who sent it and how it ended', () => {
  const progress = new PullProgress()
  const one = progress.begin('docker.io/library/one:1')
  assert.deepEqual(progress.list().map(({ id, image, state, step, layers: none }) => ({ id, image, state, step, none })), [{ id: 1, image: 'docker.io/library/one:1', state: 'running', step: 'resolve', none: [] }])
  one.resolved('sha256:m', 'mirror.example')
  one.document('mirror.example')
  one.step('download layers')
  one.layers(layers, 1)
  one.layer('sha256:b', 'downloading')
  one.stored('sha256:b', 30)
  one.received('sha256:b', 30, 'mirror.example')
  one.received('sha256:b', 5, 'docker.io')
  one.received('sha256:b', 5, 'docker.io')
  one.received('sha256:unknown', 5, 'docker.io')
  const [view] = progress.list()
  assert.deepEqual(view?.layers, [
    { digest: 'sha256:a', sizeBytes: 100, storedBytes: 100, state: 'present', from: {} },
    { digest: 'sha256:b', sizeBytes: 200, storedBytes: 30, state: 'downloading', from: { 'mirror.example': 30, 'docker.io': 10 } },
    { digest: 'sha256:c', sizeBytes: 50, storedBytes: 0, state: 'waiting', from: {} },
  ])
  assert.deepEqual([view?.digest, view?.resolvedBy, view?.documentsFrom, view?.step], ['sha256:m', 'mirror.example', ['mirror.example'], 'download layers'])
  one.layer('sha256:b', 'done')
  one.stored('sha256:b', 1000)
  one.end()
  one.end('too late')
  const failed = progress.begin('two')
  failed.end('cannot resolve')
  assert.deepEqual(progress.list().map(({ state, error }) => [state, error]), [['done', undefined], ['failed', 'cannot resolve']])
  assert.equal(progress.list()[0]?.layers[1]?.storedBytes, 200)
  assert.doesNotThrow(() => JSON.stringify(progress.list()))
})

test('what has ended stays for a minute, and not without bound', (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_000_000 })
  const progress = new PullProgress()
  const running = progress.begin('running')
  for (let count = 0; count < 100; count++) progress.begin(`pull ${count}`).end()
  assert.equal(progress.list().length, 33)
  assert.equal(progress.list().at(-1)?.image, 'pull 99')
  t.mock.timers.tick(60_001)
  assert.deepEqual(progress.list().map(({ image }) => image), ['running'])
  running.end()
  assert.equal(progress.list().length, 1)
})
