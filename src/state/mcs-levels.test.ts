import assert from 'node:assert/strict'
import test from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { McsLevels } from './mcs-levels.ts'

const label = (level: string): string => `system_u:system_r:container_t:${level}`

test('no two pods get one level, and all that there are can be given', () => {
  const levels = new McsLevels(5)
  const given = Array.from({ length: 10 }, (_, index) => levels.allocate(`pod${index}`))
  assert.equal(new Set(given).size, 10)
  for (const level of given) assert.match(level, /^s0:c[0-4],c[0-4]$/)
  assert.throws(() => levels.allocate('one more'), (error) => error instanceof CriError && error.code === Code.RESOURCE_EXHAUSTED && /all 10 SELinux levels of 5 categories.*selinux_category_range/.test(error.message))
  levels.release('pod3')
  assert.equal(levels.allocate('next'), given[3])
})

test('a shared level is free when the last of its owners is gone', () => {
  const levels = new McsLevels(2)
  const level = levels.allocate('pod')
  levels.reserve(label(level), 'container')
  levels.reserve(label(level), 'container')
  levels.release('pod')
  assert.throws(() => levels.allocate('other'))
  levels.release('container')
  levels.release('container')
  assert.equal(levels.allocate('other'), level)
  assert.equal(levels.size, 1)
})

test('labels of before a restart are taken again; those without categories are nobody\'s', () => {
  const levels = new McsLevels(2)
  levels.reserve(label('s0:c0,c1'), 'pod')
  levels.reserve('', 'none')
  levels.reserve('system_u:system_r:spc_t', 'none')
  levels.reserve(label('s0'), 'plain')
  levels.reserve(label('s0-s0:c0.c1023'), 'all')
  assert.throws(() => levels.allocate('new'))
  levels.release('pod')
  assert.equal(levels.allocate('new'), 's0:c0,c1')
})

test('the level of unconfined mounts is never given, a range that is none gives nothing', () => {
  const levels = new McsLevels(0)
  levels.reserve(label('s0:c1022,c1023'), 'pod')
  levels.release('pod')
  const given = new Set(Array.from({ length: 2000 }, (_, index) => levels.allocate(`pod${index}`)))
  assert.ok(given.size === 2000 && !given.has('s0:c1022,c1023'))
  assert.throws(() => new McsLevels(1).allocate('pod'), /all 0 SELinux levels of 1 categories/)
})
