import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { LayerView, PullView } from '../image-service/pull/progress.ts'
import { bars, changes, ownPull, summary } from './pull-display.ts'

const mib = 1024 * 1024
const digest = (letter: string): string => `sha256:${letter.repeat(64)}`
function layer(letter: string, more: Partial<LayerView> = {}): LayerView {
  return { digest: digest(letter), sizeBytes: 10 * mib, storedBytes: 0, state: 'waiting', from: {}, ...more }
}
function view(more: Partial<PullView> = {}): PullView {
  return { id: 1, image: 'docker.io/library/x:1', state: 'running', step: 'download and unpack layers', since: '2026-01-01T00:00:00.000Z', passedOver: {}, documentsFrom: [], layers: [], ...more }
}

test('bars: a line for the whole and one for each layer, never wider or higher than the terminal', () => {
  const pull = view({ layers: [
    layer('a', { state: 'done', storedBytes: 10 * mib, from: { 'mirror.example': 10 * mib } }), layer('b', { state: 'downloading', storedBytes: 4.5 * mib, from: { 'mirror.example': mib, 'docker.io': 3.5 * mib } }),
    layer('c', { state: 'present', storedBytes: 10 * mib }), layer('d', { sizeBytes: 0 }), layer('e'),
  ] })
  const lines = bars(pull, 100, 24)
  assert.equal(lines.length, 6)
  assert.equal(lines[0], 'docker.io/library/x:1  download and unpack layers  24.5 MiB of 40.0 MiB')
  assert.match(lines[1] ?? '', /^ {2}sha256:a{12} {2}█{30} {2}done +10\.0 MiB {2}mirror\.example$/)
  assert.match(lines[2] ?? '', /^ {2}sha256:b{12} {2}█{13}▌ +45 % +10\.0 MiB {2}docker\.io$/)
  for (const [columns, rows] of [[20, 5], [40, 4], [80, 3], [1, 1], [200, 100]] as const) {
    const drawn = bars(pull, columns, rows)
    assert.ok(drawn.length <= Math.max(rows, 3) && drawn.every((line) => line.length < Math.max(columns, 2)), `${columns}x${rows}: ${drawn.join('\n')}`)
  }
  assert.match(bars(pull, 100, 6).join('\n'), /b{12}.*\n.*d{12}.*\n {2}and 3 more layers$/, 'what moves comes first')
})

test('lines: each event once', () => {
  const first = view({ digest: digest('f'), resolvedBy: 'mirror.example' })
  assert.deepEqual(changes(undefined, first), [`docker.io/library/x:1 is ${digest('f')}, says mirror.example`])
  assert.deepEqual(changes(first, first), [])
  const second = { ...first, layers: [layer('a', { state: 'present' }), layer('b', { state: 'downloading' }), layer('c')] }
  assert.deepEqual(changes(first, second), ['sha256:aaaaaaaaaaaa 10.0 MiB: present', 'sha256:bbbbbbbbbbbb 10.0 MiB: downloading'])
  const third = { ...first, layers: [layer('a', { state: 'present' }), layer('b', { state: 'unpacking', from: { one: 4 * mib, two: 6 * mib } }), layer('c', { state: 'done', from: { one: 10 * mib } })] }
  assert.deepEqual(changes(second, third), ['sha256:bbbbbbbbbbbb 10.0 MiB: downloaded from one (4.0 MiB), two (6.0 MiB)', 'sha256:cccccccccccc 10.0 MiB: downloaded from one', 'sha256:cccccccccccc: unpacked'])
  const fourth = { ...first, layers: [layer('a', { state: 'present' }), layer('b', { state: 'done' }), layer('c', { state: 'done' })] }
  assert.deepEqual(changes(third, fourth), ['sha256:bbbbbbbbbbbb: unpacked'])
})

test('the summary says who served what, and why others did not', () => {
  const pull = view({ digest: digest('f'), resolvedBy: 'one', documentsFrom: ['one', 'two'], layers: [layer('a', { from: { one: 4 * mib, two: 6 * mib } }), layer('b', { from: { two: 2048 } }), layer('c', { state: 'present' })] })
  assert.deepEqual(summary(pull), [`name resolved by one: ${digest('f')}`, 'manifest and configuration from one, two', 'one served 4.0 MiB of 1 layer', 'two served 6.0 MiB of 2 layers', '1 layer was there already'])
  assert.deepEqual(summary(view()), [])
  const passedOver = { 'dead.example': ['connection refused', 'connection refused (skipped for 15 s)'], 'poor.example': ['404 not found', 'only 5 bytes arrived in 30 s'] }
  assert.deepEqual(summary(view({ passedOver })), ['dead.example was passed over: connection refused', 'poor.example was passed over: 404 not found; only 5 bytes arrived in 30 s'])
})

test('the pull that a call is part of', () => {
  const started = Date.parse('2026-01-01T00:01:00.000Z')
  const [older, joined, other] = [view({ id: 1, ended: '2026-01-01T00:00:30.000Z', state: 'done' }), view({ id: 2 }), view({ id: 3, image: 'docker.io/library/y:1' })]
  assert.equal(ownPull([older], 'docker.io/library/x:1', started), undefined, 'one that was over before is another')
  assert.equal(ownPull([older, joined, other], 'docker.io/library/x:1', started)?.id, 2, 'one that ran already is joined')
  assert.equal(ownPull([older, { ...joined, ended: '2026-01-01T00:01:00.500Z', state: 'done' }], 'docker.io/library/x:1', started)?.id, 2)
})
