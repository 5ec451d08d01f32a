import assert from 'node:assert/strict'
import { it } from 'node:test'
import { operations, stages } from './operations.ts'
import { parseOptions } from './options.ts'

it('runs everything unless told otherwise', () => {
  assert.deepEqual(parseOptions([]), { rounds: 40, quick: false, only: new Set(operations), jsonFile: undefined, profile: false, control: false, binary: 'containerd' })
  assert.deepEqual(parseOptions(['--quick', '--json', 'x.json', '--profile']), { rounds: 5, quick: true, only: new Set(operations), jsonFile: 'x.json', profile: true, control: false, binary: 'containerd' })
})

it('takes operations by name or group, in any spelling', () => {
  const options = parseOptions(['--only', 'runpodsandbox, pod-start', '--only', 'exec'])
  assert.deepEqual(options === 'help' ? undefined : [...options.only], ['RunPodSandbox', 'pod start', 'ExecSync'])
})

it('has a stage for every operation', () => {
  assert.deepEqual(new Set(Object.values(stages).flat()), new Set(operations))
})

it('says what is wrong with an option', () => {
  assert.throws(() => parseOptions(['--only', 'RunPod']), /there is no operation "RunPod"; there are RunPodSandbox, .*PullImage, .*, and the groups pods, exec, streams, list, stats, pull, mirrors/)
  assert.throws(() => parseOptions(['--rounds', '0']), /--rounds: "0" is not a number from 1/)
  assert.throws(() => parseOptions(['--profile', '--control']), /give one of the two/)
  assert.throws(() => parseOptions(['--fast']), /--fast/)
})
