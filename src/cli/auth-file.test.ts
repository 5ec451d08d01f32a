import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { parseImageRef } from '../registry-mirrors/image-ref.ts'
import { authOf } from './auth-file.ts'

test('the credential of a config.json goes on its way with every byte', async () => {
  const dir = await mkdtemp(path.join(os.tmpdir(), 'auth-file-'))
  const file = path.join(dir, 'config.json')
  try {
    const odd = Buffer.from('us\xe9r:p\xe4ss', 'latin1').toString('base64')
    await writeFile(file, JSON.stringify({ auths: { 'odd.example': { auth: odd }, 'plain.example': { auth: Buffer.from('usér:päss').toString('base64') }, 'token.example': { identitytoken: 'refresh' } } }))
    assert.deepEqual(await authOf(file, parseImageRef('odd.example/x')), { auth: odd })
    assert.deepEqual(await authOf(file, parseImageRef('plain.example/x')), { username: 'usér', password: 'päss' })
    assert.deepEqual(await authOf(file, parseImageRef('token.example/x')), { identity_token: 'refresh' })
    await assert.rejects(authOf(file, parseImageRef('other.example/x')), /has no credential for other\.example/)
    await assert.rejects(authOf(`${file}.gone`, parseImageRef('other.example/x')), /gone does not exist/)
  } finally {
    await rm(dir, { recursive: true })
  }
})
