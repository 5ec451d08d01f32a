import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseChallenges } from './challenge.ts'

test('challenges, alone and together', () => {
  const bearer = { scheme: 'bearer', parameters: { realm: 'https://auth.example/token', service: 'reg.example', scope: 'repository:a/b:pull,push' } }
  const basic = { scheme: 'basic', parameters: { realm: 'a "quoted" realm, with commas = signs' } }
  const bearerText = 'Bearer realm="https://auth.example/token",service="reg.example" , scope="repository:a/b:pull,push"'
  const basicText = 'Basic realm="a \\"quoted\\" realm, with commas = signs"'
  assert.deepEqual(parseChallenges([bearerText]), [bearer])
  assert.deepEqual(parseChallenges([basicText, bearerText]), [basic, bearer])
  assert.deepEqual(parseChallenges([`${basicText}, ${bearerText}`]), [basic, bearer])
  assert.deepEqual(parseChallenges(['Bearer realm=https://auth.example/token,service=x']), [{ scheme: 'bearer', parameters: { realm: 'https://auth.example/token', service: 'x' } }])
  assert.deepEqual(parseChallenges(['Negotiate, Basic']), [{ scheme: 'negotiate', parameters: {} }, { scheme: 'basic', parameters: {} }])
  for (const text of ['', '"', 'Bearer realm="unclosed', '=x', 'a=b', 'Bearer ==', '\u0000']) assert.ok(Array.isArray(parseChallenges([text])), text)
})

test('what no registry would send is not read to its end', () => {
  const good = 'Bearer realm="https://x"'
  assert.deepEqual(parseChallenges([good, 'a,'.repeat(100_000), good]).filter(({ scheme }) => scheme === 'bearer').length, 1)
  assert.ok(parseChallenges(['a,'.repeat(100_000)]).length <= 8192)
})
