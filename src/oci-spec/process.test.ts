import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { containerSpec } from './container-spec.ts'
import { imageConfigOf } from './image-config.ts'
import { environment, execProcess, processArgs, workingDirectory } from './process.ts'
import { containerInput, refusal } from './spec-fixtures.ts'

test('command and args against Entrypoint and Cmd', () => {
  const image = { Entrypoint: ['/ep'], Cmd: ['a', 'b'] }
  const args = (command: string[], args: string[], of = image): string[] => processArgs({ command, args }, of)
  assert.deepEqual(args([], []), ['/ep', 'a', 'b'])
  assert.deepEqual(args(['/c'], []), ['/c'])
  assert.deepEqual(args([], ['x']), ['/ep', 'x'])
  assert.deepEqual(args(['/c'], ['x']), ['/c', 'x'])
  assert.deepEqual(args([], [], { Entrypoint: [''], Cmd: ['sh'] }), ['sh'])
  assert.deepEqual(args([], ['x'], { Entrypoint: [], Cmd: ['sh'] }), ['x'])
  assert.throws(() => args([], [], { Entrypoint: [], Cmd: [] }), refusal(Code.INVALID_ARGUMENT, /no command specified/))
  assert.throws(() => args(['a\0b'], []), refusal(Code.INVALID_ARGUMENT, /argument 0 .* NUL/))
})

test('environment: later ones win, defaults are there, HOME comes last', () => {
  const value = (text: string): Buffer => Buffer.from(text)
  const base = { base: [], image: [], request: [], hostname: 'h', tty: false, home: undefined }
  assert.deepEqual(environment(base), ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'HOSTNAME=h'])
  assert.deepEqual(environment({ ...base, tty: true, image: ['PATH=/bin', 'A=1', 'B=x=y', 'JUNK', '=z'], request: [{ key: 'A', value: value('2') }, { key: 'C', value: value('') }], home: '/root' }),
    ['PATH=/bin', 'TERM=xterm', 'HOSTNAME=h', 'A=2', 'B=x=y', 'C=', 'HOME=/root'])
  assert.ok(environment({ ...base, image: ['HOME=/srv'], home: '/root' }).includes('HOME=/srv'))
  assert.ok(environment({ ...base, tty: true, request: [{ key: 'TERM', value: value('vt100') }] }).includes('TERM=vt100'))
  assert.ok(environment({ ...base, base: ['PATH=/opt/bin'] }).includes('PATH=/opt/bin'))
  for (const key of ['', 'a=b', 'a\0']) assert.throws(() => environment({ ...base, request: [{ key, value: value('') }] }), refusal(Code.INVALID_ARGUMENT, /environment variable/), key)
  assert.throws(() => environment({ ...base, request: [{ key: 'K', value: value('a\0b') }] }), refusal(Code.INVALID_ARGUMENT, /"K".* NUL/))
  assert.throws(() => environment({ ...base, request: [{ key: 'K', value: Buffer.from([0xff]) }] }), refusal(Code.INVALID_ARGUMENT, /"K".* not UTF-8/))
})

test('working directory: request, image, /; none that leads out of the container', () => {
  assert.equal(workingDirectory('', ''), '/')
  assert.equal(workingDirectory('', '/srv'), '/srv')
  assert.equal(workingDirectory('', 'srv/app'), '/srv/app')
  assert.equal(workingDirectory('/tmp', '/srv'), '/tmp')
  assert.equal(workingDirectory('/proc/fd', ''), '/proc/fd')
  assert.throws(() => workingDirectory('tmp', ''), refusal(Code.INVALID_ARGUMENT, /not an absolute path/))
  for (const path of ['/proc/self/fd/8', '/proc/thread-self/fd', '//proc/self/./fd/7', '/x/../proc/1/root', '/proc/1/task/1/cwd', '/dev/fd/3']) {
    assert.throws(() => workingDirectory('', path), refusal(Code.INVALID_ARGUMENT, /leads out of the container/), path)
  }
})

test('an exec runs as the container does, with a command and a terminal of its own', () => {
  const spec = containerSpec(containerInput({ config: { linux: { security_context: { no_new_privs: true }, resources: { oom_score_adj: '500' } } } }))
  const before = structuredClone(spec)
  const process = execProcess(spec, { cmd: ['id', '-u'], tty: true })
  assert.deepEqual(process, { ...before.process, terminal: true, args: ['id', '-u'], env: [...(before.process?.env ?? []), 'TERM=xterm'] })
  assert.deepEqual(spec, before)
  assert.deepEqual(execProcess(spec, { cmd: ['id'], tty: false }).env, before.process?.env)
  const tty = containerSpec(containerInput({ config: { tty: true, envs: [{ key: 'TERM', value: Buffer.from('vt100') }] } }))
  assert.deepEqual(execProcess(tty, { cmd: ['id'], tty: true }).env, tty.process?.env)
  assert.equal(execProcess(tty, { cmd: ['id'], tty: false }).terminal, false)
  assert.throws(() => execProcess(spec, { cmd: [], tty: false }), refusal(Code.INVALID_ARGUMENT, /no command/))
  assert.throws(() => execProcess({}, { cmd: ['id'], tty: false }), refusal(Code.FAILED_PRECONDITION, /no process/))
})

test('an image\'s configuration is checked, field by field', () => {
  assert.deepEqual(imageConfigOf(undefined), { User: '', Env: [], Entrypoint: [], Cmd: [], WorkingDir: '', Volumes: [], Labels: {}, StopSignal: '', ExposedPorts: [] })
  assert.deepEqual(imageConfigOf({ Env: null, Volumes: { '/data': {} }, Labels: { a: 'b' }, ExposedPorts: { '80/tcp': {} }, StopSignal: 'SIGINT' }),
    { User: '', Env: [], Entrypoint: [], Cmd: [], WorkingDir: '', Volumes: ['/data'], Labels: { a: 'b' }, StopSignal: 'SIGINT', ExposedPorts: ['80/tcp'] })
  for (const [field, value] of Object.entries({ User: 5, Env: 'A=1', Entrypoint: [1], Cmd: {}, WorkingDir: [], Volumes: [], Labels: { a: 1 }, StopSignal: 9, ExposedPorts: 'x' })) {
    assert.throws(() => imageConfigOf({ [field]: value }), refusal(Code.INVALID_ARGUMENT, new RegExp(`malformed: ${field} `)), field)
  }
  assert.throws(() => imageConfigOf([]), refusal(Code.INVALID_ARGUMENT, /config is not an object/))
})

test('HOME is left to the runtime where a mount brings another /etc/passwd', () => {
  const env = (containerPath: string): string[] | undefined =>
    containerSpec(containerInput({}, { mounts: [{ origin: 'cri', containerPath, hostPath: '/h', readonly: false }] })).process?.env
  assert.ok(env('/data')?.includes('HOME=/root'))
  assert.ok(!env('/etc/passwd')?.some((line) => line.startsWith('HOME=')))
  assert.ok(!env('/etc/')?.some((line) => line.startsWith('HOME=')))
})
