import assert from 'node:assert/strict'
import { mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { criuComplaint } from './criu-log.ts'

test('why CRIU refused is what it said last, without its source lines, once', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-criu-'))
  assert.equal(await criuComplaint(dir.path), undefined, 'no log')
  const told = async (...lines: string[]): Promise<string | undefined> => {
    await writeFile(join(dir.path, 'dump.log'), `${lines.join('\n')}\n`)
    return criuComplaint(dir.path)
  }
  assert.equal(await told('(00.000001) Version: 3.17.1', '(00.000002) Warn  (criu/kerndat.c:1290): slow', '(00.000003) Dumping finished successfully'), undefined)
  assert.equal(await told(
    '(00.005000) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.',
    '(00.005100) Error (criu/cr-dump.c:1768): Dumping FAILED.',
  ), 'inet: Connected TCP socket, consider using --tcp-established option.')
  assert.equal(await told('Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds', '(00.1)     12: Error (criu/a.c:1): first', 'Error (criu/b.c:2): second', 'Error (criu/b.c:9): second', 'Error (criu/c.c:3): third'), 'first; second; third')
  assert.equal(await told('Error (a.c:1): far above', 'x'.repeat(100_000), 'Error (b.c:2): at the end'), 'at the end')
})
