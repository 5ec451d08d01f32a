import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatGoDuration, parseGoDuration } from './go-duration.ts'

test('what Go parses', () => {
  const cases: [string, number][] = [['0', 0], ['0s', 0], ['5m0s', 300_000], ['4h', 14_400_000], ['1h30m', 5_400_000], ['1.5s', 1500], ['.5s', 500], ['250ms', 250], ['10us', 0.01], ['10µs', 0.01], ['1ns', 0.000001], ['-3s', -3000], ['+2m', 120_000]]
  for (const [text, ms] of cases) assert.equal(parseGoDuration(text), ms, text)
})

test('what Go refuses', () => {
  for (const text of ['', '5', '4 hours', '5m ', '1d', 's', '.s', '-', '1h-2m', '2562048h', 'abc']) assert.equal(parseGoDuration(text), undefined, text)
})

test('prints as Go does, and reads back', () => {
  for (const text of ['0s', '5m0s', '4h0m0s', '1h30m0s', '1.5s', '250ms', '10s', '10us', '1ns', '-3s']) {
    assert.equal(formatGoDuration(parseGoDuration(text) ?? Number.NaN), text)
  }
})
