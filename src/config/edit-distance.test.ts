import assert from 'node:assert/strict'
import { test } from 'node:test'
import { editDistance, nearestWord } from './edit-distance.ts'

test('counts insertions, deletions, substitutions and swaps', () => {
  assert.equal(editDistance('SystemCgroup', 'SystemdCgroup'), 1)
  assert.equal(editDistance('cir', 'cri'), 1)
  assert.equal(editDistance('certs.d', 'cert.d'), 1)
  assert.equal(editDistance('', 'abc'), 3)
  assert.equal(editDistance('kitten', 'sitting'), 3)
})

test('the nearest word, if it is near', () => {
  assert.deepEqual(nearestWord('systemd_cgroup', ['SystemdCgroup', 'ShimCgroup']), { word: 'SystemdCgroup', distance: 0 })
  assert.deepEqual(nearestWord('bindir', ['conf_dir', 'bin_dir']), { word: 'bin_dir', distance: 0 })
  assert.equal(nearestWord('foo', ['Root', 'IoUid']), undefined)
})
