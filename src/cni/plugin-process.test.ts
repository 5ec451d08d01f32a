import assert from 'node:assert/strict'
import { chmodSync, closeSync, copyFileSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { inheritedEnv, type PluginRun, runPluginProcess } from './plugin-process.ts'
import { Sandbox, testSignal } from './test-support.ts'

const run = (path: string, more: Partial<PluginRun> = {}): PluginRun => ({ path, env: { PATH: '/usr/bin:/bin', CNI_COMMAND: 'ADD' }, stdin: '{}', timeoutMs: 30_000, signal: testSignal(), what: 'fake ADD', ...more })
const failsWith = (code: Code, pattern: RegExp) => (error: unknown): boolean => {
  assert.ok(error instanceof CriError, String(error))
  assert.match(error.message, pattern)
  return error.code === code
}

test('input, environment, output and exit code arrive', async () => {
  using sandbox = new Sandbox()
  const path = sandbox.plugin('fake', `cat; printf ' %s|%s' "$CNI_COMMAND" "\${PATH:+path}"; echo err >&2; exit 3`)
  const big = 'x'.repeat(300_000)
  assert.deepEqual(await runPluginProcess(run(path, { stdin: big })), { code: 3, signal: null, stdout: `${big} ADD|path`, stderr: 'err\n' })
})

test('plugins inherit what their tools need, not what systemd, Node.js or another runtime told this process', () => {
  const env = { PATH: '/bin', HTTPS_PROXY: 'x', NOTIFY_SOCKET: '/s', WATCHDOG_USEC: '1', LISTEN_FDS: '1', NODE_OPTIONS: '--x', CNI_STALE: 'x' }
  assert.deepEqual(inheritedEnv(env), { PATH: '/bin', HTTPS_PROXY: 'x' })
})

test('a plugin that does not read its input, dies of a signal, or says too much on standard error', async () => {
  using sandbox = new Sandbox()
  const deaf = sandbox.plugin('deaf', 'exec <&-; echo ok')
  assert.equal((await runPluginProcess(run(deaf, { stdin: 'x'.repeat(5_000_000) }))).stdout, 'ok\n')
  assert.deepEqual(await runPluginProcess(run(sandbox.plugin('dying', 'kill -9 $$'))), { code: null, signal: 'SIGKILL', stdout: '', stderr: '' })
  const chatty = await runPluginProcess(run(sandbox.plugin('chatty', 'head -c 100000 /dev/zero | tr "\\0" a >&2; echo the end >&2')))
  assert.equal(chatty.stderr.length, 8192)
  assert.ok(chatty.stderr.endsWith('athe end\n'))
})

test('a plugin that prints without end is killed', async () => {
  using sandbox = new Sandbox()
  await assert.rejects(runPluginProcess(run(sandbox.plugin('endless', 'while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done'))), failsWith(Code.INTERNAL, /printed more than 4194304 bytes/))
})

test('a background child that keeps the pipes open does not keep the caller', async () => {
  using sandbox = new Sandbox()
  const exit = await runPluginProcess(run(sandbox.plugin('forking', 'sleep 1000 & echo $! > "$dir/pid"; echo done')))
  process.kill(Number(sandbox.read('pid')), 'SIGKILL')
  assert.deepEqual([exit.code, exit.stdout], [0, 'done\n'])
})

test('what cannot be started says why and what to do', async () => {
  using sandbox = new Sandbox()
  const garbage = join(sandbox.binDir, 'garbage')
  writeFileSync(garbage, '#!/no/such/shell\n', { mode: 0o755 })
  await assert.rejects(runPluginProcess(run(garbage)), failsWith(Code.INTERNAL, /cannot start CNI plugin fake ADD .*garbage.*ENOENT.*install the CNI plugins again/))
  chmodSync(garbage, 0o644)
  await assert.rejects(runPluginProcess(run(garbage)), failsWith(Code.INTERNAL, /EACCES.*chmod 0755/))
})

test('a binary that is being written is tried again until it is whole', async () => {
  using sandbox = new Sandbox()
  const path = join(sandbox.binDir, 'copied')
  copyFileSync('/bin/true', path)
  const writer = openSync(path, 'r+')
  const running = runPluginProcess(run(path))
  setTimeout(() => closeSync(writer), 300)
  assert.equal((await running).code, 0)
})

test('an abort before the start starts nothing', async () => {
  using sandbox = new Sandbox()
  const path = sandbox.plugin('fake', 'touch "$dir/ran"')
  await assert.rejects(runPluginProcess(run(path, { signal: AbortSignal.abort(new Error('too late')) })), /too late/)
  assert.throws(() => sandbox.read('ran'), /ENOENT/)
})
