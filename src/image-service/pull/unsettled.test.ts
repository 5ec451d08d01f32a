import assert from 'node:assert/strict'
import { test } from 'node:test'
import { withDescendants } from './unsettled.ts'

test('what stands on a snapshot goes before it, once, and nothing else goes', () => {
  const all = [{ name: 'a', parent: '' }, { name: 'b', parent: 'a' }, { name: 'c', parent: 'b' }, { name: 'rw', parent: 'c' }, { name: 'b2', parent: 'a' }, { name: 'z', parent: '' }]
  assert.deepEqual(withDescendants(all, ['b', 'c', 'gone']), ['rw', 'c', 'b'])
  assert.deepEqual(new Set(withDescendants(all, ['a'])), new Set(['rw', 'c', 'b', 'b2', 'a']))
  assert.deepEqual(withDescendants(all, []), [])
})
