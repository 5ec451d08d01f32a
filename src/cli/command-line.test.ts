import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { temporaryDirectory } from '../server/fixtures.ts'
import { commandsWith, main } from './command-line.ts'

const commands = commandsWith(() => Promise.reject(new Error('no test of this file gets this far')))

async function run(...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = ''
  let stderr = ''
  const code = await main(commands, words, { stdout: (text) => void (stdout += text), stderr: (text) => void (stderr += text) })
  return { code, stdout, stderr }
}

test('a wrong command line says what was meant and exits with 2', async () => {
  const wrong: [string, RegExp][] = [
    ['', /Usage: cri-shim COMMAND/],
    ['sevre', /unknown command "sevre"; did you mean serve\?/],
    ['something', /unknown command "something"\n/],
    ['config', /config needs one of: config check, config show, config default/],
    ['config --config x', /config needs one of/],
    ['config chekc', /unknown command "config chekc"; did you mean config check\?/],
    ['--listen unix:///x', /a command comes first, flags after it: cri-shim serve --listen/],
    ['help nope', /unknown command "nope"/],
    ['serve --lisen unix:///x', /serve: unknown flag --lisen; did you mean --listen\?/],
    ['serve --metrics_address x', /did you mean --metrics-address\?/],
    ['serve --listen', /--listen needs a value: --listen ADDRESS/],
    ['serve --listen --root /x', /--listen needs a value/],
    ['serve --root /x --root /y', /--root is given twice/],
    ['serve -l x', /unknown flag -l/],
    ['serve now', /unexpected argument "now"/],
    ['config check a b', /unexpected argument "b"/],
    ['version --verbose', /unknown flag --verbose/],
  ]
  for (const [line, message] of wrong) {
    const result = await run(...line.split(' ').filter((word) => word !== ''))
    assert.equal(result.code, 2, line)
    assert.equal(result.stdout, '', line)
    assert.match(result.stderr, message, line)
  }
})

test('help and version', async () => {
  for (const words of [['help'], ['--help'], ['-h']]) {
    const { code, stdout } = await run(...words)
    assert.equal(code, 0)
    for (const { name } of commands) assert.match(stdout, new RegExp(`^ {2}${name} `, 'm'))
  }
  for (const words of [['help', 'config', 'show'], ['config', 'show', '--help'], ['config', 'show', '--config', '/x', '-h']]) {
    const { code, stdout } = await run(...words)
    assert.equal(code, 0)
    assert.match(stdout, /^Usage: cri-shim config show \[--config FILE\]/m)
    assert.match(stdout, /--log-level LEVEL/)
  }
  for (const word of ['version', '--version', '-v']) {
    const { code, stdout } = await run(word)
    assert.equal(code, 0)
    assert.match(stdout, new RegExp(`^cri-shim \\d+\\.\\d+\\.\\d+\nNode.js ${process.versions.node} .*\nCRI v1`))
  }
})

test('config check exits with 1 for what stops the service, and names file and line', async () => {
  using directory = temporaryDirectory()
  const good = join(directory.path, 'good.toml')
  const bad = join(directory.path, 'bad.toml')
  writeFileSync(good, 'version = 3\n')
  writeFileSync(bad, 'version = 3\n\n[plugins."io.cri-shim.v1"]\nlog_level = 7\n')
  assert.equal((await run('config', 'check', good)).code, 0)
  const { code, stdout } = await run('config', 'check', bad)
  assert.equal(code, 1)
  assert.match(stdout, new RegExp(`^${bad}:4:\\d+: error: `, 'm'))
  const missing = await run('config', 'check', join(directory.path, 'missing.toml'))
  assert.equal(missing.code, 1)
  assert.match(missing.stdout, /missing\.toml/)
  const serve = await run('serve', '--config', bad)
  assert.equal(serve.code, 1)
  assert.match(serve.stderr, /bad\.toml:4/)
})

test('config show prints what serve would run with; config default can be loaded', async () => {
  using directory = temporaryDirectory()
  const file = join(directory.path, 'default.toml')
  const written = await run('config', 'default')
  assert.equal(written.code, 0)
  writeFileSync(file, written.stdout)
  const { code, stdout } = await run('config', 'show', '--config', file, '--root', '/srv/elsewhere', '--metrics-address', '')
  assert.equal(code, 0)
  assert.match(stdout, /root = "\/srv\/elsewhere".*flag --root/)
  assert.match(stdout, /metrics_address = "".*flag --metrics-address/)
  const wrong = await run('config', 'show', '--config', file, '--log-level', 'loud')
  assert.equal(wrong.code, 1)
  assert.match(wrong.stderr, /--log-level/)
})

test('config default keeps the settings of a file that it is told to import', async () => {
  using directory = temporaryDirectory()
  const [file, imported] = [join(directory.path, 'default.toml'), join(directory.path, 'containerd.toml')]
  writeFileSync(imported, 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "registry.example/pause:1"\n')
  const written = await run('config', 'default', '--imports', imported)
  assert.equal(written.code, 0)
  writeFileSync(file, written.stdout)
  const { code, stdout } = await run('config', 'show', '--config', file)
  assert.equal(code, 0)
  assert.match(stdout, /sandbox = "registry\.example\/pause:1" # .*containerd\.toml:3/)
})

test('the binary answers, ends when its reader has seen enough, and fills the cache that systemd keeps for it', async () => {
  using directory = temporaryDirectory()
  const shell = promisify(execFile)
  const env = { ...process.env, CACHE_DIRECTORY: directory.path, NODE_COMPILE_CACHE: undefined }
  const program = join(import.meta.dirname, 'main.ts')
  const { stdout } = await shell(process.execPath, [program, 'version'], { env })
  assert.match(stdout, /^cri-shim /)
  assert.notEqual(readdirSync(directory.path).length, 0)
  const piped = await shell('/bin/sh', ['-c', `("$0" "$1" config default; echo "exit code $?" >&2) | head -n 1`, process.execPath, program], { env })
  assert.match(piped.stderr, /^exit code 0\n$/)
})
