import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Suspects } from './suspects.ts'

test('who sent all of a wrong blob is not asked again', () => {
  const suspects = new Suspects()
  assert.deepEqual(suspects.avoid, [])
  suspects.wrong(['a'], [])
  assert.deepEqual(suspects.avoid, ['a'])
  suspects.wrong(['b'], [])
  assert.deepEqual(suspects.avoid, ['a', 'b'])
})

test('of several, who broke off is suspected before who went on; proven wrong, the others are asked again', () => {
  const suspects = new Suspects()
  suspects.wrong(['junk', 'registry'], ['junk'])
  assert.deepEqual(suspects.avoid, ['junk'])
  suspects.wrong(['registry'], [])
  assert.deepEqual(suspects.avoid, ['registry'], 'the first one is no longer suspected: it was the other')
  suspects.wrong(['junk'], [])
  assert.deepEqual(suspects.avoid, ['registry', 'junk'])
})

test('when nobody broke off, or all did, all are suspected', () => {
  for (const brokenOff of [[], ['a', 'b']]) {
    const suspects = new Suspects()
    suspects.wrong(['a', 'b'], brokenOff)
    assert.deepEqual(suspects.avoid, ['a', 'b'])
  }
})
