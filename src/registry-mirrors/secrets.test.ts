import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hideSecrets, secretsInAuthorization, secretsInHeaders, secretsInQuery, secretsOf } from './secrets.ts'

const password = 'hunter2+/long&pass"word'
const basic = `Basic ${Buffer.from(`user:${password}`).toString('base64')}`

test('a secret is cut out of a text in every form that has a name', () => {
  const forms = [
    password, encodeURIComponent(password), new URLSearchParams({ p: password }).toString().slice(2), JSON.stringify(password).slice(1, -1), Buffer.from(password).toString('base64'), Buffer.from(password).toString('base64url'),
    Buffer.from(password).toString('hex'), `user:${password}`, basic, basic.slice('Basic '.length),
  ]
  for (const form of forms) assert.match(hideSecrets(`no: "${form}" is wrong`, secretsOf({ kind: 'password', username: 'user', password })), /^no: "[^"]*…" is wrong$/, form)
})

test('what holds a secret in another form is not shown at all', () => {
  const forms = [
    password.split('').join(' '), 'hunter2 +/long& pass"word', password.toUpperCase(), password.slice(3, 16), Buffer.from(`xy:user:${password}`).toString('base64'),
    Buffer.from(`{"p":"${password.toUpperCase()}"}`).toString('hex'), encodeURIComponent(Buffer.from(`a${password}`).toString('base64')), [...Buffer.from(password)].map((byte) => `%${byte.toString(16)}`).join(''),
  ]
  for (const form of forms) assert.equal(hideSecrets(`no: ${form} is wrong`, [password]), '', form)
  assert.equal(hideSecrets('bad: abc', ['b']), '', 'which letters are missing would tell it')
})

test('what holds none stays as it is', () => {
  for (const text of ['DENIED: requested access to the resource is denied', 'manifest unknown: tag 1.2', 'quota 100 % used, see %zz', '']) assert.equal(hideSecrets(text, [password, 'ab+', '']), text)
  assert.equal(hideSecrets('user is not known', secretsOf({ kind: 'password', username: 'user', password })), 'user is not known')
  assert.equal(hideSecrets('a'.repeat(60_000), ['a'.repeat(11) + 'b'.repeat(30_000)]), 'a'.repeat(2000))
})

test('secrets in credentials, headers and URLs', () => {
  assert.deepEqual(secretsOf({ kind: 'none' }), [])
  assert.deepEqual(secretsOf({ kind: 'identity', token: 't' }), ['t'])
  assert.deepEqual(secretsInAuthorization('Bearer abc'), ['abc'])
  assert.deepEqual(secretsInAuthorization('abc'), ['abc'])
  assert.deepEqual(secretsInAuthorization(undefined), [])
  assert.deepEqual(secretsInHeaders({ 'X-Team': ['platform'], 'X-Api-Key': ['k1', 'k2'], 'Authorization': [basic] }), ['k1', 'k2', basic.slice('Basic '.length), password])
  assert.deepEqual(secretsInQuery(new URL('https://h/x?se=1&sig=0123456789abcdef')), ['0123456789abcdef'])
})
