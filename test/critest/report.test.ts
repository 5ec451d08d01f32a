import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { type Expectation, compare, parseReport, summary } from './report.ts'

const spec = (text: string, State: string, Message = ''): object => ({
  LeafNodeType: 'It', ContainerHierarchyTexts: ['[k8s.io] Group'], LeafNodeText: text, State, RunTime: 2e9, NumAttempts: 1, ...(Message === '' ? {} : { Failure: { Message } }),
})
const report = JSON.stringify([{
  SpecReports: [
    { LeafNodeType: 'BeforeSuite', ContainerHierarchyTexts: null, LeafNodeText: '', State: 'passed', RunTime: 1, NumAttempts: 1 },
    spec('passes', 'passed'),
    spec('fails', 'failed', 'expected\n  this'),
    spec('panics', 'panicked', 'oh'),
    spec('skips itself', 'skipped', 'no AppArmor'),
    spec('was not selected', 'skipped'),
  ],
}])

describe('critest report', () => {
  it('reads what ran, not what a filter left out', () => {
    assert.deepEqual(parseReport(report).map(({ text, state, seconds }) => [text, state, seconds]), [
      ['[k8s.io] Group passes', 'passed', 2],
      ['[k8s.io] Group fails', 'failed', 2],
      ['[k8s.io] Group panics', 'failed', 2],
      ['[k8s.io] Group skips itself', 'skipped', 2],
    ])
  })

  it('accepts what is expected and nothing else', () => {
    const outcomes = parseReport(report)
    const expectations: readonly Expectation[] = [
      { spec: 'Group fails', state: 'failed', server: 'containerd', reason: 'known' },
      { spec: 'Group skips', state: 'skipped', reason: 'machine' },
      { spec: 'Group panics', state: 'skipped', reason: 'stale' },
      { spec: 'Group passes', state: 'failed', server: 'cri-shim', reason: 'stale' },
    ]
    const control = compare(outcomes, expectations, 'containerd')
    assert.deepEqual(control.known.map(({ outcome }) => outcome.text), ['[k8s.io] Group fails', '[k8s.io] Group skips itself'])
    assert.deepEqual(control.surprises, ['failed, expected to be skipped (stale): [k8s.io] Group panics: oh'])
    const shim = compare(outcomes, expectations, 'cri-shim')
    assert.deepEqual(shim.surprises.map((line) => line.split(':', 1)[0]), ['passed, expected to be failed (stale)', 'failed', 'failed, expected to be skipped (stale)'])
    assert.match(summary(outcomes, shim, 'cri-shim'), /cri-shim: 4 specs run: 1 passed, 2 failed, 1 skipped; 3 not as expected$/)
  })

  it('has a reason for every spec that is not expected to pass', async () => {
    const expectations = JSON.parse(await readFile(join(import.meta.dirname, 'expected.json'), 'utf8')) as readonly Expectation[]
    for (const { spec, state, reason } of expectations) assert.ok(spec.length > 5 && ['failed', 'skipped'].includes(state) && reason.length > 10, spec)
  })
})
