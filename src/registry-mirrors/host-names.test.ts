import assert from 'node:assert/strict'
import type { lookup } from 'node:dns'
import { test } from 'node:test'
import { HostNames } from './host-names.ts'

test('a name is looked up once for all who ask at the same time, and anew afterwards', () => {
  const asked: { readonly name: string; readonly answer: (error: Error | null, address: unknown, family?: number) => void }[] = []
  const system = ((name: string, _options: unknown, answer: (error: Error | null, address: unknown, family?: number) => void) => void asked.push({ name, answer })) as unknown as typeof lookup
  const names = new HostNames(system)
  const told: unknown[] = []
  const ask = (name: string, all = true): void => names.lookup(name, { all }, (error, address) => told.push(error ?? address))
  ask('dead.example')
  ask('DEAD.example')
  ask('dead.example', false)
  ask('good.example')
  assert.deepEqual(asked.map(({ name }) => name), ['dead.example', 'dead.example', 'good.example'], 'another shape of answer is another question')
  asked[2]?.answer(null, [{ address: '192.0.2.1', family: 4 }])
  assert.deepEqual(told.splice(0), [[{ address: '192.0.2.1', family: 4 }]])
  const silent = new Error('EAI_AGAIN')
  asked[0]?.answer(silent, undefined)
  assert.deepEqual(told.splice(0), [silent, silent])
  ask('dead.example')
  assert.equal(asked.length, 4, 'nothing is kept')
})
