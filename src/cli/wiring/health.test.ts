import assert from 'node:assert/strict'
import { test } from 'node:test'
import { unavailable } from '../../errors/cri-error.ts'
import { backgroundCtx } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import { Health } from './health.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')

test('everybody who asks at the same time waits for one answer of containerd', async () => {
  let asked = 0
  const answer = Promise.withResolvers<{ version: string; revision: string }>()
  const health = new Health({ version: async () => { asked++; return answer.promise } }, ctx)
  const all = [health.problem(), health.problem(), health.problem()]
  answer.resolve({ version: '1', revision: '' })
  assert.deepEqual(await Promise.all(all), [undefined, undefined, undefined])
  assert.equal(asked, 1)
})

test('says what is wrong', async () => {
  const health = new Health({ version: () => Promise.reject(unavailable('containerd does not answer on unix:///x')) }, ctx)
  assert.equal(await health.problem(), 'containerd does not answer on unix:///x')
})
