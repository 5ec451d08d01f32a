import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { spawnProgram } from './spawn.ts'

let dir = ''
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'spawn-'))
})
after(async () => {
  await rm(dir, { recursive: true, force: true })
})

async function script(name: string, body: string): Promise<string> {
  const path = join(dir, name)
  await writeFile(path, `#!/bin/sh\n${body}\n`)
  await chmod(path, 0o755)
  return path
}

async function run(path: string, input = '', env: Record<string, string> = {}): Promise<{ code: number | null; signal: string | null; stdout: string; stderr: string; pid: number }> {
  const child = spawnProgram(path, { cwd: '/', env: { PATH: process.env['PATH'], ...env } })
  const read = async (stream: typeof child.stdout): Promise<string> => {
    let text = ''
    for await (const chunk of stream) text += String(chunk)
    return text
  }
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  const [end, stdout, stderr] = await Promise.all([child.ended, read(child.stdout), read(child.stderr)])
  child.stdin.destroy()
  return { ...end, stdout, stderr, pid: child.pid }
}

test('a program gets its input, environment and working directory; its output and exit code come back', async () => {
  const path = await script('echo', 'cat; echo "$GREETING in $PWD" >&2; exit 7')
  assert.deepEqual({ ...await run(path, 'hello', { GREETING: 'grüezi' }), pid: 0 }, { code: 7, signal: null, stdout: 'hello', stderr: 'grüezi in /\n', pid: 0 })
})

test('it leads a process group of its own, and a signal that ends it is told', async () => {
  const path = await script('group', 'cut -d " " -f 5 /proc/$$/stat; kill -TERM $$')
  const { pid, stdout, code, signal } = await run(path)
  assert.equal(Number(stdout.trim()), pid)
  assert.deepEqual([code, signal], [null, 'SIGTERM'])
})

test('it begins with every signal at its default and none blocked', async () => {
  process.on('SIGUSR2', () => undefined)
  const { stdout } = await run(await script('signals', 'grep -E "Sig(Blk|Ign)" /proc/self/status'))
  process.removeAllListeners('SIGUSR2')
  for (const line of stdout.trim().split('\n')) assert.match(line, /^Sig(Blk|Ign):\s+0+$/)
})

test('it has no descriptor that a child of child_process would not have, and none of its own stays with us', async () => {
  const path = await script('fds', 'ls /proc/self/fd | wc -l')
  const { stdout: ours } = await run(path)
  const before = readdirSync('/proc/self/fd').length
  assert.equal(ours, execFileSync(path, { encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'] }))
  await run(path)
  assert.equal(readdirSync('/proc/self/fd').length, before)
})

test('a program that cannot be started is told as child_process tells it, and leaves nothing open', () => {
  const before = readdirSync('/proc/self/fd').length
  assert.throws(() => spawnProgram(join(dir, 'missing'), { cwd: '/', env: {} }), { code: 'ENOENT' })
  assert.throws(() => spawnProgram(dir, { cwd: '/', env: {} }), { code: 'EACCES' })
  assert.equal(readdirSync('/proc/self/fd').length, before)
})

test('many at once are all waited for, in whatever order they end', async () => {
  const path = await script('many', 'read n; exit $n')
  const ends = await Promise.all(Array.from({ length: 50 }, (_, index) => run(path, `${index}\n`)))
  assert.deepEqual(ends.map(({ code }) => code), Array.from({ length: 50 }, (_, index) => index))
  const zombies = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).filter((pid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1] ?? ''
      return stat.startsWith(`Z ${process.pid} `)
    } catch {
      return false
    }
  })
  assert.deepEqual(zombies, [])
})
