import assert from 'node:assert/strict'
import { it } from 'node:test'
import { nowNanoseconds } from './timestamp.ts'

it('follows the system clock where the monotonic clock does not: a suspended machine, a clock set anew', (t) => {
  const before = nowNanoseconds()
  const now = Date.now()
  assert.ok(before > 0n)
  const hours = 8 * 3_600_000
  const clock = t.mock.method(Date, 'now', () => now + hours)
  const after = nowNanoseconds()
  assert.ok(after >= BigInt(now + hours) * 1_000_000n, `${before} → ${after}`)
  clock.mock.mockImplementation(() => now)
  const back = nowNanoseconds()
  assert.ok(back < after && back >= BigInt(now) * 1_000_000n, 'a clock that is set back by hours is followed as well')
})

it('increases strictly, also when the clock goes back a little', (t) => {
  const now = Date.now()
  const clock = t.mock.method(Date, 'now', () => now)
  let before = nowNanoseconds()
  for (let round = 0; round < 1000; round++) {
    if (round === 500) clock.mock.mockImplementation(() => now - 3000)
    const next = nowNanoseconds()
    assert.ok(next > before)
    before = next
  }
})
