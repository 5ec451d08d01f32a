import assert from 'node:assert/strict'
import { mkdir, mkdtempDisposable, readFile, rename, rmdir, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { AuditLog } from './audit-log.ts'
import { createLogger } from './logger.ts'
import { createMetrics } from './metrics.ts'

async function fixture(name = 'audit.log') {
  const dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-audit-'))
  const said: Record<string, unknown>[] = []
  const log = createLogger('info', { write: (line) => void said.push(JSON.parse(line) as Record<string, unknown>) })
  const metrics = createMetrics()
  const path = join(dir.path, name)
  const lines = async (file = path): Promise<Record<string, unknown>[]> => (await readFile(file, 'utf8').catch(() => '')).split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Record<string, unknown>)
  const counted = async (result: string): Promise<number> => Number(new RegExp(`cri_shim_audit_lines_total\\{result="${result}"\\} (\\d+)`).exec(await metrics.registry.metrics())?.[1] ?? 0)
  const until = async (count: number, result = 'written'): Promise<void> => { while (await counted(result) < count) await turn() }
  return { path, said, log, metrics, lines, until, counted, [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose]() }
}

it('writes lines in order into a file of its own, and goes on in a new one when that was moved away', async () => {
  await using f = await fixture()
  const audit = new AuditLog({ target: f.path, log: f.log, metrics: f.metrics })
  await audit.start()
  assert.equal((await stat(f.path)).mode & 0o777, 0o600)
  for (let index = 0; index < 1200; index++) audit.write({ index, text: 'a\nb' })
  await f.until(1200)
  const written = await f.lines()
  assert.deepEqual(written.map(({ index }) => index), Array.from({ length: 1200 }, (_, index) => index))
  assert.match(String(written[0]?.['time']), /^\d{4}-\d\d-\d\dT.*Z$/)
  await rename(f.path, `${f.path}.1`)
  audit.write({ index: 'after' })
  await f.until(1201)
  assert.deepEqual((await f.lines()).map(({ index }) => index), ['after'])
  assert.equal((await f.lines(`${f.path}.1`)).length, 1200)
  audit.reopen()
  audit.write({ index: 'reopened' })
  await audit.close()
  assert.deepEqual((await f.lines()).map(({ index }) => index), ['after', 'reopened'])
})

it('says loudly what it cannot write, with the line, and goes on when it can', async () => {
  await using f = await fixture(join('missing', 'audit.log'))
  const audit = new AuditLog({ target: f.path, log: f.log, metrics: f.metrics })
  await audit.start()
  assert.match(JSON.stringify(f.said), /ENOENT.*the audit log cannot be written/)
  audit.write({ action: 'Exec' })
  await f.until(1, 'failed')
  assert.deepEqual(f.said.filter(({ msg }) => msg === 'a line that the audit log could not take').map(({ level, audit: line }) => [level, (line as Record<string, unknown>)['action']]), [['error', 'Exec']])
  assert.equal(f.said.filter(({ msg }) => String(msg).startsWith('the audit log cannot be written')).length, 1, 'once a minute')
  await mkdir(join(f.path, '..'))
  audit.write({ action: 'Attach' })
  await audit.close()
  assert.deepEqual((await f.lines()).map(({ action }) => action), ['Attach'])
  assert.equal(f.said.filter(({ msg }) => msg === 'the audit log can be written again').length, 1)
})

it('bounds what waits for a disk that is slow', async () => {
  await using f = await fixture()
  const audit = new AuditLog({ target: f.path, log: f.log, metrics: f.metrics, maxQueued: 3 })
  for (let index = 0; index < 5; index++) audit.write({ index })
  await audit.close()
  assert.deepEqual((await f.lines()).map(({ index }) => index), [0, 1, 2])
  assert.equal(await f.counted('failed'), 2)
})

it('does not follow a symbolic link, nor take a directory', async () => {
  await using f = await fixture()
  await mkdir(f.path)
  const audit = new AuditLog({ target: f.path, log: f.log, metrics: f.metrics })
  await audit.start()
  assert.match(JSON.stringify(f.said), /EISDIR/)
  await audit.close()
  await rmdir(f.path)
})

it('writes to standard output', async () => {
  await using f = await fixture()
  const out: string[] = []
  const audit = new AuditLog({ target: 'journal', log: f.log, metrics: f.metrics, stdout: { write: (text) => out.push(text) } })
  await audit.start()
  audit.write({ action: 'Exec' })
  assert.match(out.join(''), /^\{"log":"audit","time":"[^"]+","action":"Exec"\}\n$/)
})
