import assert from 'node:assert/strict'
import { test } from 'node:test'
import { noFeatures, parseRuntimeFeatures } from './runtime-features.ts'

test('what runc 1.1 and 1.3 print', () => {
  const older = { mountOptions: ['ro', 'rro', 'rw'], linux: { namespaces: ['mount', 'user'], seccomp: { enabled: true } } }
  assert.deepEqual(parseRuntimeFeatures(JSON.stringify(older)), { recursiveReadOnlyMounts: true, idmapMounts: false, userNamespaces: true })
  const newer = { ...older, linux: { ...older.linux, mountExtensions: { idmap: { enabled: true } } } }
  assert.deepEqual(parseRuntimeFeatures(JSON.stringify(newer)), { recursiveReadOnlyMounts: true, idmapMounts: true, userNamespaces: true })
})

test('what is missing, null or of another kind is not there', () => {
  for (const document of [{}, { mountOptions: null, linux: null }, { mountOptions: 'rro', linux: [] }, { linux: { namespaces: 'user', mountExtensions: { idmap: { enabled: 'true' } } } }]) {
    assert.deepEqual(parseRuntimeFeatures(JSON.stringify(document)), noFeatures)
  }
  for (const text of ['', 'unknown command features', '[]', '"rro"', 'null']) assert.throws(() => parseRuntimeFeatures(text))
})
