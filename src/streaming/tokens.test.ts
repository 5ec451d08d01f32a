import assert from 'node:assert/strict'
import { it } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { Tokens } from './tokens.ts'
import type { StreamSession } from './types.ts'

const session: StreamSession = { kind: 'attach', containerId: 'c', tty: false, stdin: false, stdout: true, stderr: true }

it('gives a session for its token once, within a minute and for its own kind', () => {
  let now = 0
  const tokens = new Tokens(() => now)
  const token = tokens.issue(session)
  assert.match(token, /^[\w-]{22}$/)
  assert.equal(tokens.redeem('attach', token), session)
  assert.equal(tokens.redeem('attach', token), undefined)
  const wrongKind = tokens.issue(session)
  assert.equal(tokens.redeem('exec', wrongKind), undefined)
  assert.equal(tokens.redeem('attach', wrongKind), undefined, 'tried in vain, it is used up')
  const [late, inTime] = [tokens.issue(session), tokens.issue(session)]
  now = 59_999
  assert.equal(tokens.redeem('attach', inTime), session)
  now = 60_000
  assert.equal(tokens.redeem('attach', late), undefined)
  assert.equal(tokens.size, 0)
})

it('lets a thousand wait, and forgets those whose minute is over', () => {
  let now = 0
  const tokens = new Tokens(() => now)
  const issued = new Set(Array.from({ length: 1000 }, () => tokens.issue(session)))
  assert.equal(issued.size, 1000)
  assert.throws(() => tokens.issue(session), (error) => error instanceof CriError && error.code === Code.RESOURCE_EXHAUSTED)
  now = 60_000
  tokens.issue(session)
  assert.equal(tokens.size, 1)
})
